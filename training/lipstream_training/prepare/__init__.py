"""Videos and drawn people -> shards of clips to train on. Entry point: `command.prepare`."""
