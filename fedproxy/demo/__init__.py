"""An embedded federation to look at: toy BinderHubs and the edge in front."""
