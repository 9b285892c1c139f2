"""The same graph behind other servers, each as its own documentation would have it: what people compare ours with."""
