"""What class averages and maps share: noise, contrast, the march of passes."""
