"""placeholder until written in this session"""
