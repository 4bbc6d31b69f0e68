"""What a network is made of and runs on: backbones, colour features, device, several processes."""
