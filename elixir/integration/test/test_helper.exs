{:ok, _started} = Application.ensure_all_started(:postgrex)
{:ok, _started} = Application.ensure_all_started(:ecto_sql)

# The tests of one mode can be left out with --exclude mode:shared, and those of clones of
# prepared templates with --exclude freeze.
ExUnit.start(capture_log: true)
excluded = ExUnit.configuration()[:exclude]

migrations = Application.app_dir(:integration, "priv/repo/migrations")

# Several repos run them, each run compiles them again.
migrate = fn repo, options ->
  Ecto.Migrator.run(repo, migrations, :up, [all: true, log: false] ++ options)
end

Code.put_compiler_option(:ignore_module_conflict, true)

# The decoder of a guide, which several tests read changes with.
"live_query.md"
|> Integration.Guide.files()
|> Map.fetch!("lib/my_app/changes/message.ex")
|> Code.compile_string("live_query.md")

unless {:mode, "shared"} in excluded do
  {:ok, server} = PgliteEx.start_link(mode: :shared)

  {:ok, _repo} =
    server
    |> PgliteEx.connection_opts(pool: Ecto.Adapters.SQL.Sandbox, pool_size: 10)
    |> Integration.SandboxRepo.start_link()

  migrate.(Integration.SandboxRepo, [])
  Ecto.Adapters.SQL.Sandbox.mode(Integration.SandboxRepo, :manual)
end

unless {:mode, "shared"} in excluded do
  {:ok, server} = PgliteEx.start_link(name: Integration.BranchPostgres, database: "branches")
  {:ok, _repo} = Integration.BranchRepo.start_link()
  migrate.(Integration.BranchRepo, [])
  PgliteEx.Sandbox.mode(Integration.BranchRepo, :manual)
  Integration.EctoCases.start!(server)
end

unless :freeze in excluded do
  {:ok, clones} =
    PgliteEx.start_link(name: Integration.Clones, mode: :isolated, template: "integration_clones")

  # The instance of an application, which has started before.
  {:ok, _repo} =
    clones
    |> PgliteEx.connection_opts(database: "postgres")
    |> Integration.ClonedRepo.start_link()

  prepare = fn connection_opts ->
    {:ok, repo} = Integration.ClonedRepo.start_link(connection_opts ++ [name: nil])
    migrate.(Integration.ClonedRepo, dynamic_repo: repo)
    Supervisor.stop(repo)
  end

  key = PgliteEx.Template.key(Integration.ClonedRepo)
  {:ok, _built_or_reused} = PgliteEx.prepare(clones, "integration_clones", prepare, key: key)
end
