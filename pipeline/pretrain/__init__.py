"""Language modelling from scratch, or continued, on packed documents."""
