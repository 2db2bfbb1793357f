defmodule PgliteEx.Sandbox do
  @moduledoc """
  A pool for tests in which every owner has a database of its own: a branch instead of a transaction.

  It has the API of `Ecto.Adapters.SQL.Sandbox`. In an application whose repo takes its address from
  `PgliteEx.repo_config/4` (see the guide "Phoenix without a database server"), two names change:

      # config/test.exs
      config :my_app, MyApp.Repo, pool: PgliteEx.Sandbox

      # test/support/data_case.ex
      pid = PgliteEx.Sandbox.start_owner!(MyApp.Repo, shared: not tags[:async])
      on_exit(fn -> PgliteEx.Sandbox.stop_owner(pid) end)

  and one in `test/test_helper.exs`:

      PgliteEx.Sandbox.mode(MyApp.Repo, :manual)

  The code under test then runs as in production. Commits are real, deferred constraints are checked at
  their end, `LISTEN` hears, advisory locks hold, migrations run. The processes of a test have connections
  of their own and run at the same time. Two tests cannot wait for each other, or be in each other's
  unique indexes, because they share nothing.

  ## Where the schema comes from

  In the mode `:auto`, with which a repo starts, all processes use the *base*: the server's own cluster, or,
  for a server in `:isolated` mode, a branch of its template. Migrations and seeds run there, as with the
  alias `test: ["ecto.create --quiet", "ecto.migrate --quiet", "test"]`, or in `test_helper.exs` before the
  mode is set.

  The branch of an owner is made when the first of its processes uses the repo. It begins with what is
  committed in the base at that moment. A test that never uses the repo makes none. Code that is to change
  the base later, for the tests that follow, runs in `unboxed_run/2`.

  ## Processes and branches

  A process uses the branch of the first of these that owns one or was allowed to use one:

   1. the process itself;
   2. the processes in `$callers`, such as the test that has started a task;
   3. the processes in `$ancestors`, such as the test that has started it with `start_supervised!/1`, or a
      supervisor that was allowed;
   4. in the mode `{:shared, pid}`, that process.

  Others get a `DBConnection.OwnershipError`. `allow/4` is for these.

  ## Connections

  A branch has one connection for each process that uses the repo at the same time, and at most
  `pool_size` of the repo's configuration (10 if there is none). They are opened when they are needed.
  Postgrex remembers the types that a branch has used for three minutes, which takes about 10 KB; in a suite of tens of
  thousands of tests, `config :postgrex, :type_server_reap_after, 1_000` in `config/test.exs` makes that a second.

  When an owner ends, its branch ends with it. A process that is still in a query gets a
  `DBConnection.ConnectionError`, and Logger gets a line of the level `:info` with the place at which it is.

  Connections by other means, such as `Postgrex.Notifications`, take their options from the handle of the
  branch:

      opts = MyApp.Repo |> PgliteEx.Sandbox.branch!() |> PgliteEx.connection_opts()
      {:ok, notifications} = Postgrex.Notifications.start_link(opts)

  ## Browser tests

  The plug of `phoenix_ecto` takes the sandbox as an option, and makes the metadata as always:

      # lib/my_app_web/endpoint.ex
      plug Phoenix.Ecto.SQL.Sandbox, sandbox: PgliteEx.Sandbox

      # in a LiveView's on_mount
      Phoenix.Ecto.SQL.Sandbox.allow(metadata, PgliteEx.Sandbox)

      # in a test
      Phoenix.Ecto.SQL.Sandbox.metadata_for(MyApp.Repo, self())

  ## What differs from Ecto's sandbox

    * `checkout/2` does not connect; the first query may find that the server does not run.
    * Rows that a test has made keep their ids and sequences their values only within the test, as with a
      new database; in Ecto's sandbox sequences go on from test to test.
    * Two repos have two branches, also when their databases are in one cluster.

  Ecto and DBConnection are no dependencies of this library; the sandbox needs them when it is used.
  """

  alias PgliteEx.{Branch, Sandbox.Pool}

  @type repo :: module | pid
  @type mode :: :auto | :manual | {:shared, pid}

  @doc """
  Sets how processes come to a branch.

    * `:auto` – the mode with which a repo starts: processes that own none use the base;
    * `:manual` – a process has to own one, or to be allowed;
    * `{:shared, pid}` – all other processes use the branch of the owner `pid`, until it ends. Then the mode
      is `:manual` again.

  The branches of all owners are dropped, except for that of `pid`. Returns `:ok`; for `{:shared, pid}` also
  `:not_owner` when `pid` uses the branch of another one, `:not_found` when it uses none, and
  `:already_shared` when another owner is shared.
  """
  @spec mode(repo, mode) :: :ok | :already_shared | :not_owner | :not_found
  def mode(repo, mode)
      when (is_atom(repo) or is_pid(repo)) and
             (mode in [:auto, :manual] or
                (is_tuple(mode) and tuple_size(mode) == 2 and elem(mode, 0) == :shared and
                   is_pid(elem(mode, 1)))) do
    %{pid: pool} = lookup_meta!(repo)
    Pool.mode(pool, mode)
  end

  @doc """
  Makes the calling process an owner, until `checkin/2` or its end.

  Returns `{:already, :owner | :allowed}` when it uses a branch already.

  Options:

    * `:sandbox` – `false`: the process uses the base instead of a branch, and what it commits is there for
      all tests that follow;
    * `:isolation` – the isolation level of transactions, such as `"repeatable read"`
      (`default_transaction_isolation`);
    * `:ownership_timeout` – how long it may be the owner, in milliseconds, or `:infinity`. Default: that in
      the configuration of the repo, or 120,000.

  Others are ignored.
  """
  @spec checkout(repo, keyword) :: :ok | {:already, :owner | :allowed}
  def checkout(repo, options \\ []) when is_atom(repo) or is_pid(repo) do
    %{pid: pool, opts: pool_opts} = lookup_meta!(repo)
    Pool.own(pool, Keyword.merge(Keyword.take(pool_opts, [:ownership_timeout]), options))
  end

  @doc """
  Ends the ownership of the calling process; its branch is dropped.

  Returns `:not_owner` when it uses the branch of another one, and `:not_found` when it uses none.
  """
  @spec checkin(repo, keyword) :: :ok | :not_owner | :not_found
  def checkin(repo, _options \\ []) when is_atom(repo) or is_pid(repo) do
    %{pid: pool} = lookup_meta!(repo)
    Pool.disown(pool)
  end

  @doc """
  Allows the process `allow`, a pid or a registered name, to use the branch of `parent`, which owns it or
  was allowed itself.

  Returns `{:already, :owner | :allowed}` when `allow` uses one already, and `:not_found` when `parent` uses
  none.

  Options:

    * `:unallow_existing` – `true`: if `allow` was allowed to use another branch, it uses this one from now on.
  """
  @spec allow(repo, pid, pid | GenServer.name(), keyword) ::
          :ok | {:already, :owner | :allowed} | :not_found
  def allow(repo, parent, allow, options \\ []) when is_atom(repo) or is_pid(repo) do
    case GenServer.whereis(allow) do
      pid when is_pid(pid) ->
        %{pid: pool} = lookup_meta!(repo)
        Pool.allow(pool, parent, pid, Keyword.get(options, :unallow_existing, false))

      other ->
        raise "only a pid or the name of a local process can be allowed to use a branch, and " <>
                "#{inspect(allow)} is #{inspect(other)}"
    end
  end

  @doc """
  Starts a process that owns a branch, and returns its pid.

  The caller is allowed to use the branch. The process is not linked to the caller; `stop_owner/1` ends it:

      setup tags do
        pid = PgliteEx.Sandbox.start_owner!(MyApp.Repo, shared: not tags[:async])
        on_exit(fn -> PgliteEx.Sandbox.stop_owner(pid) end)
      end

  Options: `:shared` – `true`: all processes use the branch (`mode/2`); and those of `checkout/2`.
  """
  @spec start_owner!(repo, keyword) :: pid
  def start_owner!(repo, options \\ []) do
    parent = self()
    {shared?, options} = Keyword.pop(options, :shared, false)

    {:ok, owner} =
      Agent.start(fn ->
        :ok = checkout(repo, options)

        if shared?,
          do: :ok = mode(repo, {:shared, self()}),
          else: :ok = allow(repo, self(), parent)
      end)

    owner
  end

  @doc "Stops an owner that `start_owner!/2` has started; its branch is dropped."
  @spec stop_owner(pid) :: :ok
  def stop_owner(owner), do: GenServer.stop(owner)

  @doc """
  Runs a function outside of the sandbox: the calling process uses the base meanwhile, and owns nothing
  afterwards.

      PgliteEx.Sandbox.unboxed_run(MyApp.Repo, fn -> MyApp.Repo.insert!(country) end)
  """
  @spec unboxed_run(repo, (() -> result)) :: result when result: var
  def unboxed_run(repo, fun) when is_atom(repo) or is_pid(repo) do
    checkin(repo)
    checkout(repo, sandbox: false)

    try do
      fun.()
    after
      checkin(repo)
    end
  end

  @doc """
  The handle of the branch that the calling process uses, which is made if it is not there yet.

  Raises `DBConnection.OwnershipError` when the process uses none, and `ArgumentError` when it uses the base.
  """
  @spec branch!(repo) :: Branch.t()
  def branch!(repo) when is_atom(repo) or is_pid(repo) do
    %{pid: pool} = lookup_meta!(repo)
    Pool.branch!(pool)
  end

  # Ecto takes a pool that has `unboxed_run/2` to be its own sandbox, and starts `DBConnection.Ownership` in its
  # place. The pool itself is therefore another module.
  @doc false
  @spec with_pool(keyword) :: keyword
  def with_pool(config) do
    if config[:pool] == __MODULE__,
      do: Keyword.put(config, :pool, Pool),
      else: config
  end

  # The pool size of an isolated server's connections, which are to one database each, is not that of a branch.
  @doc false
  @spec without_pool_size(keyword, keyword) :: keyword
  def without_pool_size(opts, config) do
    if config[:pool] in [__MODULE__, Pool],
      do: Keyword.delete(opts, :pool_size),
      else: opts
  end

  defp lookup_meta!(repo) do
    meta = repo |> find_repo() |> Ecto.Adapter.lookup_meta()

    if meta[:partition_supervisor],
      do: raise(ArgumentError, "the option :pool_count does not work with #{inspect(__MODULE__)}")

    unless meta.opts[:pool] == Pool do
      raise """
      cannot invoke sandbox operation with pool #{inspect(meta.opts[:pool])}.
      To use this sandbox, configure the repository with

          pool: #{inspect(__MODULE__)}

      and let it connect to the server of PgliteEx, in its init/2:

          def init(context, config), do: {:ok, PgliteEx.repo_config(MyApp.Postgres, context, config)}
      """
    end

    meta
  end

  defp find_repo(repo) when is_atom(repo), do: repo.get_dynamic_repo()
  defp find_repo(repo), do: repo
end
