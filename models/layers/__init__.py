"""What several systems are made of and trained by: backbones, fusion, losses, post-processing."""
