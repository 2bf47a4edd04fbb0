from hypothesis import settings

# Deadlines are timing asserts, and the machines that run this are slow and shared.
settings.register_profile("mlxpipe", deadline=None, max_examples=60)
settings.load_profile("mlxpipe")
