defmodule Integration.BranchSandboxTest do
  @moduledoc "PgliteEx.Sandbox: what it promises beyond Ecto's sandbox."
  use ExUnit.Case, async: true

  import Ecto.Query

  alias Integration.Account
  alias Integration.BranchRepo, as: Repo
  alias PgliteEx.Sandbox

  @moduletag mode: :shared

  # As the generated `DataCase`, with one name changed.
  setup tags do
    pid = Sandbox.start_owner!(Repo, shared: not tags[:async])
    on_exit(fn -> Sandbox.stop_owner(pid) end)
    %{owner: pid}
  end

  defp insert!(email), do: Repo.insert!(Account.changeset(%Account{}, %{email: email}))
  defp emails, do: Repo.all(from(a in Account, order_by: a.email, select: a.email))
  defp backend, do: Repo.query!("select pg_backend_pid()").rows

  # The sessions of the branch but for the one that asks.
  defp others(where) do
    sql =
      "select count(*) from pg_stat_activity where backend_type = 'client backend' " <>
        "and pid <> pg_backend_pid() and #{where}"

    Repo.query!(sql).rows
  end

  for n <- 1..4 do
    test "test #{n}: a commit is one, and no other test sees it" do
      insert!("committed@example.com")
      # Seen by another connection than the one that has committed.
      Repo.transaction(fn ->
        one = backend()
        task = Task.async(fn -> {backend(), emails()} end)
        assert {other, ["committed@example.com"]} = Task.await(task)
        assert other != one
      end)
    end
  end

  test "a transaction that is rolled back leaves nothing, and an open one is not seen" do
    parent = self()

    task =
      Task.async(fn ->
        Repo.transaction(fn ->
          insert!("open@example.com")
          send(parent, :inserted)
          receive do: (:go_on -> Repo.rollback(:no))
        end)
      end)

    assert_receive :inserted, 10_000
    assert emails() == []
    send(task.pid, :go_on)
    assert {:error, :no} = Task.await(task)
    assert emails() == []
  end

  test "deferred constraints are checked at the commit" do
    Repo.query!(
      "create table parts (id int primary key, of int references parts deferrable initially deferred)"
    )

    assert {:ok, _} =
             Repo.transaction(fn ->
               Repo.query!("insert into parts values (1, 2)")
               Repo.query!("insert into parts values (2, null)")
             end)

    assert_raise Postgrex.Error, ~r/violates foreign key constraint/, fn ->
      Repo.transaction(fn -> Repo.query!("insert into parts values (3, 4)") end)
    end

    assert Repo.query!("select count(*) from parts").rows == [[2]]
  end

  test "LISTEN hears what the repo notifies" do
    opts = Repo |> Sandbox.branch!() |> PgliteEx.connection_opts()
    notifications = start_supervised!({Postgrex.Notifications, opts})
    {:ok, reference} = Postgrex.Notifications.listen(notifications, "news")
    Repo.transaction(fn -> Repo.query!("select pg_notify('news', 'first')") end)
    assert_receive {:notification, ^notifications, ^reference, "news", "first"}, 10_000
  end

  test "advisory locks and row locks hold between processes" do
    account = insert!("locked@example.com")
    parent = self()

    task =
      Task.async(fn ->
        Repo.transaction(fn ->
          Repo.query!("select pg_advisory_xact_lock(1)")
          Repo.one!(from(a in Account, where: a.id == ^account.id, lock: "for update"))
          send(parent, :locked)
          receive do: (:go_on -> :ok)
        end)
      end)

    assert_receive :locked, 10_000
    assert Repo.query!("select pg_try_advisory_lock(1)").rows == [[false]]
    locked = from(a in Account, where: a.id == ^account.id, lock: "for update nowait")
    assert_raise Postgrex.Error, ~r/lock_not_available/, fn -> Repo.one!(locked) end
    send(task.pid, :go_on)
    Task.await(task)
    assert Repo.query!("select pg_try_advisory_lock(1)").rows == [[true]]
  end

  @tag :tmp_dir
  test "migrations run, with their lock, and the other branches keep their schema", %{
    tmp_dir: directory
  } do
    File.write!(Path.join(directory, "20270101000000_add_moods.exs"), """
    defmodule Integration.AddMoods do
      use Ecto.Migration
      @disable_ddl_transaction true
      @disable_migration_lock true

      def change do
        execute "create type mood as enum ('happy', 'sad')", "drop type mood"
        alter(table(:accounts), do: add(:mood, :mood))
        create index(:accounts, [:mood], concurrently: true)
      end
    end
    """)

    File.write!(Path.join(directory, "20270101000001_add_pets.exs"), """
    defmodule Integration.AddPets do
      use Ecto.Migration
      def change, do: create(table(:pets), do: add(:name, :text))
    end
    """)

    assert [20_270_101_000_000, 20_270_101_000_001] =
             Ecto.Migrator.run(Repo, directory, :up, all: true, log: false)

    insert!("moody@example.com")
    assert Repo.query!("update accounts set mood = 'sad' returning mood").rows == [["sad"]]
    assert [20_270_101_000_001] = Ecto.Migrator.run(Repo, directory, :down, step: 1, log: false)
    assert Repo.query!("select to_regclass('pets') is null").rows == [[true]]
  end

  test "a type that is made in a branch is not taken for one of another branch" do
    make = fn type, value, name ->
      in_process(start_owner(), fn ->
        Repo.query!("create type made as #{type}")
        # A connection that was made after the type.
        values =
          Repo.transaction(fn -> Task.await(Task.async(fn -> Repo.query!(value).rows end)) end)

        {values, Repo.query!("select '#{name}'::regtype::oid::int").rows}
      end)
    end

    {:ok, {enum, number}} = make.("enum ('one', 'two')", "select 'one'::made", "made")
    {:ok, {array, same}} = make.("(a int, b text)", "select array[row(1, 'x')::made]", "_made")
    # The branches number their objects alike; otherwise this test shows nothing.
    assert number == same
    assert enum == {:ok, [["one"]]}
    assert array == {:ok, [[[{1, "x"}]]]}
  end

  test "processes of a test run at the same time" do
    # Each waits for a number of the other, inside of a query.
    wait = fn mine, other ->
      Task.async(fn ->
        Repo.checkout(fn ->
          Repo.query!("select pg_advisory_lock($1)", [mine])
          # The other one has its lock, and this one waits for it until it is given back.
          Repo.query!("""
          do $$ begin
            while not exists (select from pg_locks where locktype = 'advisory' and objid = #{other}) loop
              perform pg_sleep(0.001);
            end loop;
          end $$
          """)
        end)
      end)
    end

    assert [%{}, %{}] = Task.await_many([wait.(1, 2), wait.(2, 1)], 20_000)
  end

  test "there are as many connections as processes that use the repo at once, and no more than pool_size" do
    assert others("true") == [[0]]

    tasks = for _ <- 1..4, do: hold()
    for _ <- 1..4, do: assert_receive({:holds, _task}, 10_000)
    assert others("true") == [[4]]
    # All five are in use; the sixth process waits for one.
    last =
      Repo.checkout(fn ->
        waiting = hold()
        refute_received {:holds, _task}
        send(hd(tasks).pid, :go_on)
        assert_receive {:holds, pid}, 10_000
        assert pid == waiting.pid
        waiting
      end)

    for task <- [last | tl(tasks)], do: send(task.pid, :go_on)
    Task.await_many([last | tasks])
    assert others("true") == [[4]]
  end

  test "connections are used again" do
    first = backend()
    for _ <- 1..20, do: assert(backend() == first)
    assert Task.await(Task.async(fn -> backend() end)) == first
  end

  test "an error of a connection is not that of others" do
    parent = self()

    task =
      Task.async(fn ->
        Repo.checkout(fn ->
          send(parent, {:backend, backend()})
          receive do: (:go_on -> backend())
        end)
      end)

    assert_receive {:backend, [[pid]]}, 10_000
    assert Repo.query!("select pg_terminate_backend($1, 10000)", [pid]).rows == [[true]]
    send(task.pid, :go_on)
    # Postgrex tells it, and the connection is replaced.
    Process.flag(:trap_exit, true)
    assert {{%error{}, _stack}, _await} = catch_exit(Task.await(task))
    assert error in [Postgrex.Error, DBConnection.ConnectionError]
    for _ <- 1..3, do: assert(Repo.query!("select 1").rows == [[1]])
  end

  test "processes that end with connections leave room for others" do
    # More than there are connections.
    for _ <- 1..7 do
      parent = self()

      {task, monitor} =
        spawn_monitor(fn ->
          receive do: (:go_on -> :ok)

          Repo.transaction(fn ->
            insert!("lost@example.com")
            send(parent, :has_one)
            receive do: (:never -> :ok)
          end)
        end)

      :ok = Sandbox.allow(Repo, self(), task)
      send(task, :go_on)
      assert_receive :has_one, 10_000
      Process.exit(task, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^task, :killed}
    end

    assert emails() == []
  end

  test "whatever processes do to connections, others can have all of them afterwards" do
    test = self()

    actions = [
      fn -> Repo.query!("select 1") end,
      fn -> Repo.transaction(fn -> Repo.query!("select pg_sleep(0.002)") end) end,
      fn -> Repo.transaction(fn -> raise "an error in a transaction" end) end,
      fn -> Repo.query!("select 1/0") end,
      fn -> Repo.checkout(fn -> Process.exit(self(), :kill) end) end,
      fn -> Repo.transaction(fn -> exit(:shutdown) end) end,
      fn -> Repo.query!("select pg_sleep(1)", [], timeout: 20) end,
      fn -> Repo.query!("select 1", [], queue: false) end,
      fn -> Repo.query!("select pg_terminate_backend(pg_backend_pid())") end
    ]

    processes =
      for n <- 1..80 do
        spawn_monitor(fn ->
          Process.put(:"$callers", [test])
          :rand.seed(:exsss, {ExUnit.configuration()[:seed], n, 0})

          for _ <- 1..5 do
            try do
              Enum.random(actions).()
            rescue
              _any -> :ok
            end
          end
        end)
      end

    for {pid, monitor} <- processes, do: assert_receive({:DOWN, ^monitor, _, ^pid, _}, 60_000)
    tasks = for _ <- 1..5, do: hold()
    for _ <- 1..5, do: assert_receive({:holds, _task}, 30_000)
    {:ok, own} = connections_of(self())
    assert %{ready_conn_count: 0, checkout_queue_length: 0} = Sandbox.Connections.metrics(own)
    for task <- tasks, do: send(task.pid, :go_on)
    Task.await_many(tasks)
    assert %{ready_conn_count: 5, checkout_queue_length: 0} = Sandbox.Connections.metrics(own)
    await_others("true", 4)
  end

  # A task that keeps a connection until it is told to go on.
  defp hold do
    test = self()

    Task.async(fn ->
      Repo.checkout(fn ->
        send(test, {:holds, self()})
        receive do: (:go_on -> :ok)
      end)
    end)
  end

  # The sessions of connections that were closed are still there for a moment.
  defp await_others(where, count),
    do: if(others(where) != [[count]], do: await_others(where, count))

  test "a query that takes too long loses its connection, and the next one has another" do
    first = backend()

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        assert catch_error(Repo.query!("select pg_sleep(1000)", [], timeout: 200))
        assert backend() != first
      end)

    assert log =~
             "timed out because it queued and checked out the connection for longer than 200ms"
  end

  test "the isolation level of transactions can be chosen" do
    parent = self()
    show = fn -> Repo.query!("show transaction_isolation").rows end
    assert show.() == [["read committed"]]

    user =
      spawn_link(fn ->
        :ok = Sandbox.checkout(Repo, isolation: "REPEATABLE READ")
        send(parent, show.())
      end)

    assert_receive [["repeatable read"]], 10_000
    refute user == self()
  end

  describe "a process uses the branch" do
    test "of its callers, at any depth" do
      insert!("a@example.com")
      deep = fn -> Task.await(Task.async(fn -> Task.await(Task.async(&emails/0)) end)) end
      assert deep.() == ["a@example.com"]
    end

    test "of its ancestors" do
      insert!("a@example.com")
      parent = self()
      # Without `$callers`, as a GenServer that a test starts.
      server =
        start_supervised!(%{
          id: :server,
          start: {Agent, :start_link, [fn -> Process.delete(:"$callers") end]}
        })

      Agent.cast(server, fn _ -> send(parent, {:emails, emails()}) end)
      assert_receive {:emails, ["a@example.com"]}, 10_000
    end

    test "that it was allowed to, by an owner or by an allowed process, as a pid or a name" do
      insert!("a@example.com")
      parent = self()

      stranger = fn ->
        spawn_link(fn ->
          for _ <- 1..2 do
            receive do: (:ask -> send(parent, {self(), ask()}))
          end
        end)
      end

      pid = stranger.()
      send(pid, :ask)
      assert_receive {^pid, DBConnection.OwnershipError}, 10_000
      assert :ok = Sandbox.allow(Repo, self(), pid)
      assert {:already, :allowed} = Sandbox.allow(Repo, self(), pid)
      send(pid, :ask)
      assert_receive {^pid, ["a@example.com"]}, 10_000

      other = stranger.()
      Process.register(other, :branch_sandbox_test_stranger)
      assert :ok = Sandbox.allow(Repo, pid, :branch_sandbox_test_stranger)
      send(other, :ask)
      assert_receive {^other, ["a@example.com"]}, 10_000
      assert :not_found = Sandbox.allow(Repo, spawn(fn -> :ok end), stranger.())
      assert_raise RuntimeError, ~r/local process/, fn -> Sandbox.allow(Repo, self(), :nobody) end
    end

    defp ask do
      emails()
    rescue
      error in DBConnection.OwnershipError -> error.__struct__
    end

    test "that it was allowed to last, if it is told to" do
      insert!("first@example.com")
      parent = self()

      user =
        spawn_link(fn ->
          for _ <- 1..2, do: receive(do: (:ask -> send(parent, {:emails, emails()})))
        end)

      :ok = Sandbox.allow(Repo, self(), user)
      send(user, :ask)
      assert_receive {:emails, ["first@example.com"]}, 10_000
      other = start_owner()
      assert {:already, :allowed} = Sandbox.allow(Repo, other, user)
      assert :ok = Sandbox.allow(Repo, other, user, unallow_existing: true)
      send(user, :ask)
      assert_receive {:emails, []}, 10_000
    end

    test "with which the metadata of phoenix_ecto comes" do
      insert!("browser@example.com")
      parent = self()

      # What `Phoenix.Ecto.SQL.Sandbox` does with `sandbox: PgliteEx.Sandbox` and with its default, in the process of
      # a request.
      for allow <- [
            fn -> Sandbox.allow(Repo, parent, self()) end,
            fn -> apply(Sandbox, :allow, [Repo, parent, self(), [unallow_existing: true]]) end
          ] do
        spawn_link(fn ->
          :ok = allow.()
          send(parent, {:emails, emails()})
        end)

        assert_receive {:emails, ["browser@example.com"]}, 10_000
      end

      # With `at:`, a session of its own is an owner.
      session = start_owner(client: self())
      assert {:ok, []} = in_process(session, fn -> emails() end)
      assert {:ok, :ok} = in_process(session, fn -> Sandbox.checkin(Repo, client: parent) end)
    end
  end

  # An owner besides that of the test, in which functions can be run.
  defp start_owner(options \\ []) do
    {:ok, owner} = Agent.start_link(fn -> :ok = Sandbox.checkout(Repo, options) end)
    Agent.get(owner, fn _ -> Process.delete(:"$ancestors") end)
    owner
  end

  # Runs a function there, and returns its result, or the error that it has raised.
  defp in_process(owner, fun) do
    Agent.get(
      owner,
      fn _ ->
        try do
          {:ok, fun.()}
        rescue
          error -> {:error, error}
        end
      end,
      30_000
    )
  end

  describe "an owner" do
    test "has a branch of its own, also beside that of the process that it was started by" do
      insert!("test@example.com")
      assert {:ok, []} = in_process(start_owner(), fn -> emails() end)
    end

    test "owns once, and no longer than until it checks in" do
      owner = start_owner()
      own = fn fun -> in_process(owner, fun) end
      assert {:ok, {:already, :owner}} = own.(fn -> Sandbox.checkout(Repo) end)
      # The test was allowed by the owner that its setup has started.
      assert {:already, :allowed} = Sandbox.checkout(Repo)
      assert :not_owner = Sandbox.checkin(Repo)
      {:ok, %{rows: [[1]]}} = own.(fn -> insert!("a@example.com") && Repo.query!("select 1") end)
      {:ok, branch} = own.(fn -> Sandbox.branch!(Repo) end)
      assert {:ok, :ok} = own.(fn -> Sandbox.checkin(Repo) end)
      assert {:ok, :not_found} = own.(fn -> Sandbox.checkin(Repo) end)
      assert {:error, %DBConnection.OwnershipError{message: message}} = own.(fn -> emails() end)
      assert message =~ "cannot find ownership process for #{inspect(owner)}"
      await_dropped(branch)
      # The next one begins as the first one has.
      assert {:ok, :ok} = own.(fn -> Sandbox.checkout(Repo) end)
      assert {:ok, []} = own.(fn -> emails() end)
    end

    test "that ends takes its branch with it, and those who use it get an error" do
      owner = start_owner()
      Process.unlink(owner)
      {:ok, branch} = in_process(owner, fn -> Sandbox.branch!(Repo) end)
      parent = self()

      use_it = fn fun ->
        spawn(fn ->
          :ok = Sandbox.allow(Repo, owner, self())
          send(parent, {self(), fun.()})
        end)
      end

      holders =
        for _ <- 1..5 do
          use_it.(fn ->
            try do
              Repo.checkout(fn ->
                send(parent, :has_one)
                Repo.query("select pg_sleep(1000)")
              end)
            rescue
              error -> {:error, error}
            end
          end)
        end

      for _ <- 1..5, do: assert_receive(:has_one, 20_000)
      # For this one there is no connection.
      queued = use_it.(fn -> Repo.query("select 1") end)
      {:ok, pool} = connections_of(owner)
      await_queue(pool)
      Process.exit(owner, :kill)
      assert_receive {^queued, {:error, %DBConnection.ConnectionError{message: message}}}, 10_000
      assert message == "owner #{inspect(owner)} exited"

      for holder <- holders do
        assert_receive {^holder, {:error, %error{}}}, 10_000
        assert error in [DBConnection.ConnectionError, Postgrex.Error]
      end

      await_dropped(branch)
      late = use_it.(fn -> :ok end)
      refute_receive {^late, _}, 0
    end

    test "that owns for too long is one no more" do
      owner = start_owner(ownership_timeout: 300)
      {:ok, branch} = in_process(owner, fn -> Sandbox.branch!(Repo) end)
      await_dropped(branch)
      assert {:error, %DBConnection.OwnershipError{}} = in_process(owner, fn -> emails() end)
    end

    test "whose branch was lost with the program is told so" do
      server = start_supervised!({PgliteEx, on_data_loss: :restart})
      opts = PgliteEx.connection_opts(server, name: nil, pool: PgliteEx.Sandbox)
      repo = start_supervised!({Integration.Repo, opts}, id: :repo_of_lost_branch)
      :ok = Sandbox.mode(repo, :manual)
      :ok = Sandbox.checkout(repo)
      Integration.Repo.put_dynamic_repo(repo)
      assert %{rows: [[1]]} = Integration.Repo.query!("select 1")
      wasm_port = PgliteEx.Server.child(server, PgliteEx.WasmPort)
      {:ok, %{"pid" => os_pid}} = PgliteEx.WasmPort.hello(wasm_port)
      monitor = Process.monitor(wasm_port)
      {_output, 0} = System.cmd("kill", ["-KILL", os_pid])
      assert_receive {:DOWN, ^monitor, :process, ^wasm_port, _reason}, 10_000
      :ok = PgliteEx.await_ready(server, 60_000)
      # The connection that was open.
      assert {:error, %_{}} = Integration.Repo.query("select 1")
      assert {:error, %Postgrex.Error{postgres: error}} = Integration.Repo.query("select 1")
      assert error.code == :invalid_catalog_name
      assert error.message =~ ~r/cluster "branch-.+" does not exist/
      assert error.hint =~ "PgliteEx.branch/2"
      # Another owner has a branch of the new cluster.
      :ok = Sandbox.checkin(repo)
      :ok = Sandbox.checkout(repo)
      assert %{rows: [[1]]} = Integration.Repo.query!("select 1")
    end

    test "whose branch cannot be made gets the reason" do
      {:ok, server} = PgliteEx.start_link(database: "gone")
      Process.unlink(server)
      opts = PgliteEx.connection_opts(server, name: nil, pool: PgliteEx.Sandbox)
      repo = start_supervised!({Integration.Repo, opts}, id: :orphaned_repo)
      :ok = Sandbox.mode(repo, :manual)
      PgliteEx.stop(server)
      :ok = Sandbox.checkout(repo)
      Integration.Repo.put_dynamic_repo(repo)

      assert {:error, %DBConnection.ConnectionError{message: message}} =
               Integration.Repo.query("select 1")

      assert message =~ "no branch could be made: the server #{inspect(server)} does not run"
    end
  end

  test "a repo that does not know its server is told what to do" do
    Process.flag(:trap_exit, true)
    opts = [name: nil, pool: PgliteEx.Sandbox.Pool, hostname: "127.0.0.1", database: "x"]
    assert {:error, reason} = Integration.Repo.start_link(opts)
    assert inspect(reason) =~ "PgliteEx.repo_config/4"
    # Without `repo_config/4`, Ecto takes the pool for its own.
    {:ok, repo} = Integration.Repo.start_link(Keyword.put(opts, :pool, PgliteEx.Sandbox))
    error = assert_raise(RuntimeError, fn -> Sandbox.checkout(repo) end)
    assert error.message =~ "PgliteEx.repo_config(MyApp.Postgres, context, config)"
    Supervisor.stop(repo)
  end

  test "a repo with several pools is refused" do
    opts = [name: :several_pools, pool: PgliteEx.Sandbox, pool_count: 2]
    opts = PgliteEx.connection_opts(Integration.BranchPostgres, opts)
    repo = start_supervised!({Integration.Repo, opts}, id: :several_pools)
    assert_raise ArgumentError, ~r/:pool_count/, fn -> Sandbox.mode(repo, :manual) end
  end

  test "an isolated server's branches are those of its template, and of what was done with it in mode :auto" do
    template = "branch_sandbox_#{System.unique_integer([:positive])}"
    server = start_supervised!({PgliteEx, mode: :isolated, template: template})

    {:ok, :built} =
      PgliteEx.prepare(server, template, fn opts ->
        {:ok, conn} = Postgrex.start_link(opts)
        Postgrex.query!(conn, "create table steps as select 'prepared' as name", [])
        GenServer.stop(conn)
      end)

    # Not the pool size of one of connections to clones.
    config = [name: nil, pool: PgliteEx.Sandbox, pool_size: 3, hostname: "elsewhere"]
    opts = PgliteEx.repo_config(server, :supervisor, config)
    assert opts[:pool_size] == 3
    opts = PgliteEx.connection_opts(server, name: nil, pool: PgliteEx.Sandbox)
    refute Keyword.has_key?(opts, :pool_size)
    repo = start_supervised!({Integration.Repo, opts}, id: :isolated_repo)
    Integration.Repo.put_dynamic_repo(repo)
    query = fn sql -> Integration.Repo.query!(sql).rows end
    query.("insert into steps values ('migrated')")
    # Another connection sees it.
    {:ok, names} =
      Integration.Repo.transaction(fn ->
        task =
          Task.async(fn ->
            Integration.Repo.put_dynamic_repo(repo)
            query.("select name from steps order by name")
          end)

        Task.await(task, 20_000)
      end)

    assert names == [["migrated"], ["prepared"]]
    :ok = Sandbox.mode(repo, :manual)
    :ok = Sandbox.checkout(repo)
    query.("insert into steps values ('test')")
    assert query.("select count(*) from steps") == [[3]]
    :ok = Sandbox.checkin(repo)
    :ok = Sandbox.checkout(repo)
    assert query.("select count(*) from steps") == [[2]]
    assert :ok = PgliteEx.Template.drop(server, template)
  end

  test "all connections are closed on request, and figures are told" do
    first = backend()
    %{pid: pool} = Ecto.Adapter.lookup_meta(Repo)
    {:ok, own} = connections_of(self())

    assert %{source: {:pool, own}, ready_conn_count: 1, checkout_queue_length: 0} in DBConnection.get_connection_metrics(
             pool,
             pool: Sandbox.Pool
           )

    # One that is in use is closed when it is given back.
    Repo.checkout(fn ->
      :ok = Sandbox.Connections.disconnect_all(own)
      assert backend() == first
    end)

    assert [[second]] = backend()
    assert [[second]] != first
    :ok = Sandbox.Connections.disconnect_all(own)
    assert backend() not in [first, [[second]]]
  end

  defp connections_of(owner) do
    %{pid: pool} = Ecto.Adapter.lookup_meta(Repo)
    {:ok, _owner, connections} = GenServer.call(pool, {:find, [owner]})
    {:ok, connections}
  end

  defp await_queue(connections) do
    if Sandbox.Connections.metrics(connections).checkout_queue_length == 0,
      do: await_queue(connections)
  end

  # Waits until the program has dropped a branch.
  defp await_dropped(%PgliteEx.Branch{name: name} = branch) do
    {:ok, clusters} = PgliteEx.request(Integration.BranchPostgres, "clusters")
    if {"name", name} in clusters, do: await_dropped(branch)
  end
end

for n <- 1..20 do
  defmodule Module.concat(Integration, "BranchSandbox#{n}Test") do
    @moduledoc "A hundred async tests, whose processes all commit to one unique key."
    use ExUnit.Case, async: true

    alias Integration.{Account, BranchRepo}
    alias PgliteEx.Sandbox

    @moduletag mode: :shared

    setup tags do
      pid = Sandbox.start_owner!(BranchRepo, shared: not tags[:async])
      on_exit(fn -> Sandbox.stop_owner(pid) end)
    end

    for test <- 1..5 do
      test "module #{n}, test #{test}: one of four processes commits the key" do
        insert = fn ->
          BranchRepo.insert(Account.changeset(%Account{}, %{email: "the one@example.com"}))
        end

        results = 1..4 |> Enum.map(fn _ -> Task.async(insert) end) |> Task.await_many(60_000)
        assert [{:ok, _account}] = Enum.filter(results, &match?({:ok, _}, &1))

        for {:error, changeset} <- results,
            do: assert({"has already been taken", _} = changeset.errors[:email])

        assert BranchRepo.aggregate(Account, :count) == 1
      end
    end
  end
end
