"""Files of ``torch.save``: the archive, the pickle that is read without running anything, and what it may build."""
