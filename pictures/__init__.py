"""Where pictures and labels come from: DeepFashion's lists, plain folders, CSV lists;
splits, import, check, decoding."""
