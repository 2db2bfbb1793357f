import Config

config :integration, ecto_repos: [Integration.Repo]
config :logger, level: :warning

# No server listens there.
config :integration, Integration.NamedRepo,
  url: "postgresql://nobody@127.0.0.1:1/elsewhere",
  priv: "priv/repo"
