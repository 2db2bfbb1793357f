[
  inputs: ["{mix,.formatter}.exs", "{lib,test}/**/*.{ex,exs}", "integration/{mix,.formatter}.exs"],
  line_length: 98
]
