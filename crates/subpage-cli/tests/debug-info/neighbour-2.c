struct narrow {
    int a;
    int b;
} thing[1] = {{1, 2}};
