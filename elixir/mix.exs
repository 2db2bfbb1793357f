defmodule PgliteEx.MixProject do
  use Mix.Project

  @version "0.1.0"
  @source "https://github.com/pglite-port/pglite-port"

  def project do
    [
      app: :pglite_ex,
      version: @version,
      elixir: "~> 1.14",
      start_permanent: Mix.env() == :prod,
      elixirc_paths: elixirc_paths(Mix.env()),
      # The binary is looked for after the modules, because the task that does it is one of them.
      compilers: Mix.compilers() ++ [:pglite_port],
      deps: [],
      # Called when they are loaded; Mix tasks load inets themselves.
      xref: [exclude: [:telemetry, Telemetry.Metrics, :httpc, :inets | ecto()]],
      name: "PgliteEx",
      description: "PostgreSQL inside an OTP supervision tree: no Docker, no Node, no server",
      source_url: @source,
      package: [licenses: ["Apache-2.0"], links: %{"Source" => @source}, files: files()],
      docs: docs()
    ]
  end

  def application do
    # Telemetry is used when the host application has it, and is no dependency.
    [extra_applications: [:logger, :crypto, :ssl, telemetry: :optional]]
  end

  # What `PgliteEx.Sandbox` uses of Ecto, DBConnection and Postgrex.
  defp ecto do
    [Ecto.Adapter, DBConnection, Postgrex.TypeServer, Postgrex.TypeSupervisor] ++
      for name <- [Connection, ConnectionError, Holder, OwnershipError],
          do: Module.concat(DBConnection, name)
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # The program is not among them: see Mix.Tasks.Compile.PglitePort. `make hex` writes the list of the
  # archives' checksums, without which there is no package.
  defp files do
    ["lib", "guides", "mix.exs", ".formatter.exs", "archives.sha256"] ++
      ["README.md", "CHANGELOG.md", "LICENSE"]
  end

  defp docs do
    [
      main: "readme",
      extras: [
        "README.md",
        "guides/ecto_in_five_minutes.md",
        "guides/phoenix.md",
        "guides/an_applications_own_database.md",
        "guides/live_query.md",
        "guides/moving_out.md",
        "guides/tests_without_a_sandbox.md",
        "guides/tests_on_several_machines.md",
        "guides/modes.md",
        "guides/observing.md",
        "guides/branches.livemd",
        "guides/limits.md",
        "guides/which_database.md",
        "CHANGELOG.md"
      ],
      groups_for_extras: [Guides: ~r{guides/}],
      groups_for_modules: [
        "For tests": [
          PgliteEx.Sandbox,
          PgliteEx.Case,
          PgliteEx.Branch,
          PgliteEx.Template,
          PgliteEx.Gate,
          PgliteEx.Clock,
          PgliteEx.Random
        ],
        Observing: [PgliteEx.Telemetry, PgliteEx.LiveDashboard, PgliteEx.Limits]
      ]
    ]
  end
end
