"""placeholder"""
def adapt(obj):
    return None
