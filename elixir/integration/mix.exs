Code.require_file("offline_packages.exs", __DIR__)

defmodule Integration.MixProject do
  use Mix.Project

  def project do
    [
      app: :integration,
      version: "0.1.0",
      elixir: "~> 1.14",
      elixirc_paths: ["lib"],
      deps: deps(),
      lockfile: lockfile()
    ]
  end

  def application, do: [extra_applications: [:logger]]

  defp deps do
    [
      {:pglite_ex, path: ".."},
      {:postgrex, "~> 0.19"},
      {:ecto_sql, "~> 3.12"},
      {:telemetry_metrics, "~> 1.1"},
      {:jason, "~> 1.4"}
    ] ++ phoenix() ++ unpackaged()
  end

  # Offline, the page for LiveDashboard is tested where its packages are there.
  defp phoenix do
    directory = System.get_env("MIX_DEPS_PATH")

    if directory == nil or File.dir?(Path.join(directory, "phoenix_live_dashboard")),
      do: [
        {:phoenix_live_dashboard, "~> 0.8"},
        # Later ones need a later Elixir than 1.14.0.
        {:phoenix_live_view, "~> 0.20.0"},
        {:floki, "~> 0.36", only: :test}
      ],
      else: []
  end

  # Sources of telemetry need rebar3; a compiler call does as well.
  defp unpackaged do
    if System.get_env("MIX_DEPS_PATH") do
      compile =
        "mkdir -p ebin && erlc -o ebin src/*.erl && cp src/telemetry.app.src ebin/telemetry.app"

      [{:telemetry, "~> 1.0", override: true, compile: compile}]
    else
      []
    end
  end

  # What was found offline says nothing about what Hex would resolve.
  defp lockfile,
    do: if(System.get_env("MIX_DEPS_PATH"), do: "_build/offline.lock", else: "mix.lock")
end
