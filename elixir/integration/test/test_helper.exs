{:ok, _started} = Application.ensure_all_started(:postgrex)
{:ok, _started} = Application.ensure_all_started(:ecto_sql)

# The tests of one mode can be left out with --exclude mode:shared, and those of clones of
# prepared templates with --exclude freeze.
ExUnit.start(capture_log: true)
excluded = ExUnit.configuration()[:exclude]

migrations = Application.app_dir(:integration, "priv/repo/migrations")

# Several repos run them, each run compiles them again.
migrate = fn repo -> Ecto.Migrator.run(repo, migrations, :up, all: true, log: false) end
Code.put_compiler_option(:ignore_module_conflict, true)

unless {:mode, "shared"} in excluded do
  {:ok, server} = PgliteEx.start_link(mode: :shared)

  {:ok, _repo} =
    server
    |> PgliteEx.connection_opts(pool: Ecto.Adapters.SQL.Sandbox, pool_size: 10)
    |> Integration.SandboxRepo.start_link()

  migrate.(Integration.SandboxRepo)
  Ecto.Adapters.SQL.Sandbox.mode(Integration.SandboxRepo, :manual)
end

unless :freeze in excluded do
  {:ok, clones} =
    PgliteEx.start_link(name: Integration.Clones, mode: :isolated, template: "integration_clones")

  prepare = fn connection_opts ->
    {:ok, repo} = Integration.ClonedRepo.start_link(connection_opts)
    migrate.(Integration.ClonedRepo)
    Supervisor.stop(repo)
  end

  key = PgliteEx.Template.key(migrations)
  {:ok, _built_or_reused} = PgliteEx.prepare(clones, "integration_clones", prepare, key: key)
end
