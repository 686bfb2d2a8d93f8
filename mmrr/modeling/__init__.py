"""What every model family shares: finding families and checkpoints, devices, chats, kept tokens, codecs."""
