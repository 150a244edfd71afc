"""Float64 reference of the DeepSeek-V2/V3 model family, written from its formulas alone."""
