import Config

config :integration, ecto_repos: [Integration.Repo]
config :logger, level: :warning
