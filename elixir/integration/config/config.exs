import Config

config :integration, ecto_repos: [Integration.Repo]
config :logger, level: :warning

# No server listens there.
config :integration, Integration.NamedRepo,
  url: "postgresql://nobody@127.0.0.1:1/elsewhere",
  priv: "priv/repo"

# As Phoenix configures a repo for tests, with an address at which no server listens.
config :integration, Integration.ClonedRepo,
  hostname: "127.0.0.1",
  port: 1,
  database: "elsewhere",
  pool: Ecto.Adapters.SQL.Sandbox,
  priv: "priv/repo"

# The same, with the sandbox of PgliteEx.
config :integration, Integration.BranchRepo,
  hostname: "127.0.0.1",
  port: 1,
  database: "elsewhere",
  pool: PgliteEx.Sandbox,
  pool_size: 5,
  priv: "priv/repo"
