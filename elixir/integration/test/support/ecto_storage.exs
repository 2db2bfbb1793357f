Code.require_file("../../../test/support/elixir_alone.ex", __DIR__)

defmodule Integration.EctoStorage do
  @moduledoc """
  A server, two repos, and the launchers of `mix pglite_ex.install` as the only `pg_dump` and `psql` of
  the VM, for tests of what Ecto's adapter calls storage.
  """

  import ExUnit.Callbacks, only: [on_exit: 1, start_supervised!: 1]

  alias Ecto.Adapters.Postgres
  alias PgliteEx.ElixirAlone

  defmodule TestRepo do
    @moduledoc false
    use Ecto.Repo, otp_app: :integration, adapter: Ecto.Adapters.Postgres
  end

  defmodule PoolRepo do
    @moduledoc false
    use Ecto.Repo, otp_app: :integration, adapter: Ecto.Adapters.Postgres
  end

  @doc """
  Starts everything for the tests of a module that is not async, because the `PATH` is the VM's.
  Returns the URL of the server without a database.
  """
  def start! do
    server = start_supervised!(PgliteEx)
    # It has its program; the launchers have to find theirs.
    use_launchers!(install!())
    opts = PgliteEx.connection_opts(server)
    url = "ecto://postgres:postgres@#{opts[:hostname]}:#{opts[:port]}"

    for repo <- [TestRepo, PoolRepo] do
      Application.put_env(:integration, repo, url: url <> "/ecto_test", pool_size: 2, log: false)
      if repo == TestRepo, do: :ok = Postgres.storage_up(repo.config())
      start_supervised!(repo)
    end

    url
  end

  # As a project does it, in a copy of the library.
  defp install! do
    directory = Path.join(System.tmp_dir!(), "ecto-storage-#{System.unique_integer([:positive])}")
    on_exit(fn -> File.rm_rf!(directory) end)
    library = ElixirAlone.library!(Path.join(directory, "elixir"))
    {:ok, program} = PgliteEx.Executable.find()
    arguments = ["--program", program, "--pglite-dir", System.fetch_env!("PGLITE_DIR")]

    {_output, 0} =
      System.cmd("mix", ["pglite_ex.install" | arguments],
        cd: library,
        env: [{"MIX_ENV", "prod"}],
        stderr_to_stdout: true
      )

    Path.join(library, "_build/prod/lib/pglite_ex/priv/bin")
  end

  defp use_launchers!(bin) do
    path = System.fetch_env!("PATH")
    names = ["PATH", "PGLITE_PORT", "PGLITE_DIR"]
    before = for name <- names, do: {name, System.get_env(name)}
    on_exit(fn -> System.put_env(before) end)
    System.put_env([{"PATH", "#{bin}:#{path}"}, {"PGLITE_PORT", nil}, {"PGLITE_DIR", nil}])
    for tool <- ["pg_dump", "psql"], do: ^bin = Path.dirname(System.find_executable(tool))
  end
end
