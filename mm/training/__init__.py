"""Training: losses, the LightningModule, optimizer and schedule."""
