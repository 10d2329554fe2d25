module creto.dev

go 1.26
