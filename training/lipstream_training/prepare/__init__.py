"""Videos and drawn people -> shards of clips to train on. From the top: `command.prepare`."""
