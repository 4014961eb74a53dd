"""Real facts in a compact form: the chemical elements, and sixty countries.

Elements: IUPAC names and symbols in the order of the atomic number; period and block follow from the number (helium in
the s block, lanthanum to ytterbium and actinium to nobelium in the f block, as in IUPAC's provisional table of 2021).
Countries: seat of the capital, region of the United Nations' M49 standard, name of the currency, as of 2024.
"""

from __future__ import annotations

ELEMENTS = (
    "H hydrogen He helium Li lithium Be beryllium B boron C carbon N nitrogen O oxygen F fluorine Ne neon "
    "Na sodium Mg magnesium Al aluminium Si silicon P phosphorus S sulfur Cl chlorine Ar argon K "
    "potassium Ca calcium Sc scandium Ti titanium V vanadium Cr chromium Mn manganese Fe iron Co cobalt "
    "Ni nickel Cu copper Zn zinc Ga gallium Ge germanium As arsenic Se selenium Br bromine Kr krypton Rb "
    "rubidium Sr strontium Y yttrium Zr zirconium Nb niobium Mo molybdenum Tc technetium Ru ruthenium Rh "
    "rhodium Pd palladium Ag silver Cd cadmium In indium Sn tin Sb antimony Te tellurium I iodine Xe "
    "xenon Cs caesium Ba barium La lanthanum Ce cerium Pr praseodymium Nd neodymium Pm promethium Sm "
    "samarium Eu europium Gd gadolinium Tb terbium Dy dysprosium Ho holmium Er erbium Tm thulium Yb "
    "ytterbium Lu lutetium Hf hafnium Ta tantalum W tungsten Re rhenium Os osmium Ir iridium Pt platinum "
    "Au gold Hg mercury Tl thallium Pb lead Bi bismuth Po polonium At astatine Rn radon Fr francium Ra "
    "radium Ac actinium Th thorium Pa protactinium U uranium Np neptunium Pu plutonium Am americium Cm "
    "curium Bk berkelium Cf californium Es einsteinium Fm fermium Md mendelevium No nobelium Lr "
    "lawrencium Rf rutherfordium Db dubnium Sg seaborgium Bh bohrium Hs hassium Mt meitnerium Ds "
    "darmstadtium Rg roentgenium Cn copernicium Nh nihonium Fl flerovium Mc moscovium Lv livermorium Ts "
    "tennessine Og oganesson"
).split()
"""Symbol and name in turn, 118 of each; the n-th pair has atomic number n."""

PERIOD_ENDS = (2, 10, 18, 36, 54, 86, 118)
"""Atomic number of each period's noble gas."""

COUNTRIES = (
    "france, paris, western europe, euro",
    "germany, berlin, western europe, euro",
    "austria, vienna, western europe, euro",
    "belgium, brussels, western europe, euro",
    "switzerland, bern, western europe, franc",
    "italy, rome, southern europe, euro",
    "spain, madrid, southern europe, euro",
    "portugal, lisbon, southern europe, euro",
    "greece, athens, southern europe, euro",
    "serbia, belgrade, southern europe, dinar",
    "albania, tirana, southern europe, lek",
    "poland, warsaw, eastern europe, zloty",
    "hungary, budapest, eastern europe, forint",
    "czechia, prague, eastern europe, koruna",
    "romania, bucharest, eastern europe, leu",
    "ukraine, kyiv, eastern europe, hryvnia",
    "russia, moscow, eastern europe, ruble",
    "sweden, stockholm, northern europe, krona",
    "norway, oslo, northern europe, krone",
    "denmark, copenhagen, northern europe, krone",
    "finland, helsinki, northern europe, euro",
    "iceland, reykjavik, northern europe, krona",
    "ireland, dublin, northern europe, euro",
    "estonia, tallinn, northern europe, euro",
    "egypt, cairo, northern africa, pound",
    "morocco, rabat, northern africa, dirham",
    "tunisia, tunis, northern africa, dinar",
    "algeria, algiers, northern africa, dinar",
    "ghana, accra, western africa, cedi",
    "nigeria, abuja, western africa, naira",
    "senegal, dakar, western africa, franc",
    "mali, bamako, western africa, franc",
    "kenya, nairobi, eastern africa, shilling",
    "uganda, kampala, eastern africa, shilling",
    "zambia, lusaka, eastern africa, kwacha",
    "angola, luanda, middle africa, kwanza",
    "namibia, windhoek, southern africa, dollar",
    "botswana, gaborone, southern africa, pula",
    "turkey, ankara, western asia, lira",
    "iraq, baghdad, western asia, dinar",
    "jordan, amman, western asia, dinar",
    "qatar, doha, western asia, riyal",
    "georgia, tbilisi, western asia, lari",
    "iran, tehran, southern asia, rial",
    "nepal, kathmandu, southern asia, rupee",
    "pakistan, islamabad, southern asia, rupee",
    "bangladesh, dhaka, southern asia, taka",
    "japan, tokyo, eastern asia, yen",
    "china, beijing, eastern asia, yuan",
    "mongolia, ulaanbaatar, eastern asia, tugrik",
    "thailand, bangkok, southeastern asia, baht",
    "vietnam, hanoi, southeastern asia, dong",
    "malaysia, kuala lumpur, southeastern asia, ringgit",
    "uzbekistan, tashkent, central asia, som",
    "canada, ottawa, northern america, dollar",
    "cuba, havana, caribbean, peso",
    "brazil, brasilia, south america, real",
    "chile, santiago, south america, peso",
    "peru, lima, south america, sol",
    "australia, canberra, oceania, dollar",
)
"""Country, capital, region, currency."""
