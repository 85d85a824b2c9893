"""PyTorch models of the Lip Forcing family and the code that distils students."""
