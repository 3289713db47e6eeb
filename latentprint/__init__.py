"""latentprint"""
