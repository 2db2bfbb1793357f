[
  import_deps: [:ecto, :ecto_sql],
  inputs: ["*.exs", "{bench,config,lib,test,priv}/**/*.{ex,exs}"],
  line_length: 98
]
