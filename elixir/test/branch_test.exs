defmodule PgliteEx.BranchTest do
  @moduledoc "Branches: made, used as servers, owned, dropped."
  use ExUnit.Case, async: true

  alias PgliteEx.{Branch, BadProgram, Error, OperatingSystem, Parts, Servers, WireClient}

  @moduletag :branch

  # A session of a server or branch.
  defp connect!(place),
    do: place |> PgliteEx.connection_opts() |> WireClient.start_session_with!()

  defp values!(place, sql) do
    client = connect!(place)
    {:ok, rows} = WireClient.query(client, sql)
    :gen_tcp.close(client)
    List.flatten(rows)
  end

  defp psql(url, sql), do: System.cmd("psql", [url, "-Atc", sql], stderr_to_stdout: true)

  defp clusters(server) do
    {:ok, options} = PgliteEx.request(server, "clusters")
    for {"name", name} <- options, do: name
  end

  # Waits until the program has dropped a branch.
  defp await_dropped(%Branch{server: server, name: name}) do
    if name in clusters(server),
      do: await_dropped(%Branch{server: server, name: name, database: ""})
  end

  # A listening socket closes a moment after the answer.
  defp refused(opts) do
    with {:ok, socket} <- :gen_tcp.connect(String.to_charlist(opts[:hostname]), opts[:port], []) do
      :gen_tcp.close(socket)
      refused(opts)
    end
  end

  # A client that closes its socket is still counted for a moment.
  defp await_connections(branch, count) do
    {:ok, %{"connections" => connections}} = PgliteEx.stats(branch)
    unless connections == count, do: await_connections(branch, count)
  end

  defp code({:error, %Error{code: code}}), do: code

  describe "a branch of a shared server" do
    setup do
      server = Servers.start!(database: "shop", username: "owner")
      values!(server, "create table notes as select 'first' as text")
      %{server: server}
    end

    test "has what is committed, and goes its own way", %{server: server} do
      writer = connect!(server)
      {:ok, []} = WireClient.query(writer, "begin; insert into notes values ('open')")
      {:ok, branch} = PgliteEx.branch(server)
      assert values!(branch, "select text from notes") == ["first"]
      assert values!(branch, "select current_database() || ' ' || current_user") == ["shop owner"]
      {:ok, []} = WireClient.query(writer, "commit")
      values!(branch, "insert into notes values ('branch')")
      assert values!(server, "select text from notes order by 1") == ["first", "open"]
      assert values!(branch, "select text from notes order by 1") == ["branch", "first"]
      assert values!(branch, "show pglite.cluster") == [branch.name]
    end

    test "takes a pool of connections that are sessions of one cluster", %{server: server} do
      {:ok, branch} = PgliteEx.branch(server)
      refute Keyword.has_key?(PgliteEx.connection_opts(branch), :pool_size)
      [one, two] = for _ <- 1..2, do: connect!(branch)
      {:ok, []} = WireClient.query(one, "listen news")
      {:ok, []} = WireClient.query(two, "insert into notes values ('second'); notify news")
      assert {:ok, {?A, _notification}} = WireClient.receive_message(one)
      assert {:ok, [["2"]]} = WireClient.query(one, "select count(*) from notes")

      assert {:ok, %{"connections" => 2, "data" => "", "origin" => "branch of default"}} =
               PgliteEx.stats(branch)
    end

    test "is what a repo connects to, whatever its configuration names", %{server: server} do
      {:ok, branch} = PgliteEx.branch(server)
      config = [url: "postgresql://nobody@127.0.0.1:1/elsewhere", pool_size: 3]
      config = PgliteEx.repo_config(branch, :supervisor, config, database: "postgres")
      assert {config[:url], config[:pool_size], config[:pglite_ex]} == {nil, 3, branch}
      client = WireClient.start_session_with!(config)
      sql = "select current_database(), current_setting('pglite.cluster')"
      assert {:ok, [["postgres", name]]} = WireClient.query(client, sql)
      assert name == branch.name
    end

    test "can be named at the address of its server, and is unknown there when it is gone", %{
      server: server
    } do
      {:ok, branch} = PgliteEx.branch(server)
      opts = PgliteEx.connection_opts(server, parameters: ["pglite.cluster": branch.name])
      {:ok, client} = WireClient.start_session_with(opts)
      assert {:ok, [["1"]]} = WireClient.query(client, "select count(*) from notes")
      :ok = PgliteEx.drop(branch)
      assert {:ok, {?E, fields}} = WireClient.receive_message(client)
      assert WireClient.sqlstate(fields) == "57P01"
      assert {:error, fields} = WireClient.start_session_with(opts)
      assert WireClient.sqlstate(fields) == "3D000"
      assert fields =~ "cluster \"#{branch.name}\" does not exist"
    end

    test "has a URL for all clients, and as many URLs as databases", %{server: server} do
      {:ok, branch} = PgliteEx.branch(server)
      url = PgliteEx.url(branch)
      assert url =~ ~r(^postgresql://owner@127\.[\d.]+:\d+/shop$)

      assert {"1\n", 0} =
               psql(url, "with n as (insert into notes values ('psql') returning 1) table n")

      assert values!(branch, "select count(*) from notes") == ["2"]
      assert values!(server, "select count(*) from notes") == ["1"]
      assert PgliteEx.url(branch) == url
      assert PgliteEx.url(branch, "other") == String.replace_suffix(url, "/shop", "/other")
      opts = PgliteEx.connection_opts(branch)
      assert opts[:port] != PgliteEx.connection_opts(server)[:port]
      # At the server's own URL, libpq names it.
      env = [{"PGOPTIONS", "-c pglite.cluster=#{branch.name}"}]
      arguments = [PgliteEx.url(server), "-Atc", "select count(*) from notes"]
      assert {"2\n", 0} = System.cmd("psql", arguments, env: env)
      :ok = PgliteEx.drop(branch)
      assert {:error, :econnrefused} = refused(opts)

      assert_raise Error, ~r/does not exist.*hint: .*PgliteEx.branch/s, fn ->
        PgliteEx.url(branch)
      end
    end

    test "is branched again, and a branch of it stays when it is dropped", %{server: server} do
      branch = PgliteEx.branch!(server)
      values!(branch, "insert into notes values ('branch')")
      {:ok, twig} = PgliteEx.branch(branch)
      assert :ok = PgliteEx.drop(branch)
      assert values!(twig, "select count(*) from notes") == ["2"]
      assert twig.database == "shop"
      assert code(PgliteEx.branch(branch)) == "3D000"
      assert_raise Error, fn -> PgliteEx.branch!(branch) end
    end

    test "has raw connections and backups", %{server: server} do
      {:ok, branch} = PgliteEx.branch(server)
      values!(branch, "insert into notes values ('branch')")
      assert {:ok, connection} = PgliteEx.open(branch)
      :ok = PgliteEx.send(connection, WireClient.startup_packet(user: "owner", database: "shop"))

      assert_receive {:pglite_ex, ^connection, {:data, <<?R, 8::32, 0::32, _rest::binary>>}},
                     10_000

      await_connections(branch, 1)
      path = Path.join(System.tmp_dir!(), "#{branch.name}.tar")
      on_exit(fn -> File.rm(path) end)
      assert {:ok, %{files: files}} = PgliteEx.backup(branch, path)
      assert files > 900
      assert_raise ArgumentError, ~r/mode/, fn -> PgliteEx.open(branch, mode: :shared) end
    end
  end

  test "a branch of an isolated server is one of its template, with a pool" do
    name = "branch_test_#{System.unique_integer([:positive])}"
    server = Servers.start!(mode: :isolated, template: name)
    assert code(PgliteEx.branch(server)) == "3D000"

    {:ok, :built} =
      PgliteEx.prepare(server, name, fn opts ->
        client = WireClient.start_session_with!(opts)
        {:ok, []} = WireClient.query(client, "create table prepared as select 1 as a")
        :gen_tcp.close(client)
      end)

    {:ok, branch} = PgliteEx.branch(server)
    assert branch.database == name
    values!(branch, "insert into prepared values (2)")
    assert values!(branch, "select a from prepared order by a") == ["1", "2"]
    # As every other, and named by a server in the other mode.
    {:ok, other} = PgliteEx.branch(Servers.start!(), template: name)
    assert values!(other, "select a from prepared") == ["1"]
    assert {:ok, %{"origin" => "template " <> ^name}} = PgliteEx.stats(other)
    assert :ok = PgliteEx.Template.drop(server, name)
  end

  test "an isolated server without a template has branches of an empty cluster" do
    server = Servers.start!(mode: :isolated)
    {:ok, branch} = PgliteEx.branch(server)
    values!(branch, "create table t as select 1 as a")
    assert values!(branch, "select a from t") == ["1"]
  end

  describe "a branch lives" do
    setup do
      %{server: Servers.start!()}
    end

    test "as long as its owner", %{server: server} do
      test = self()

      {owner, monitor} =
        spawn_monitor(fn ->
          send(test, {:branch, PgliteEx.branch!(server)})
          receive do: (:end -> :ok)
        end)

      assert_receive {:branch, branch}, 10_000
      client = connect!(branch)
      url = PgliteEx.url(branch)
      send(owner, :end)
      assert_receive {:DOWN, ^monitor, :process, ^owner, :normal}
      # Its sessions are told.
      assert {:ok, {?E, fields}} = WireClient.receive_message(client)
      assert WireClient.sqlstate(fields) == "57P01"
      await_dropped(branch)

      assert {_output, 2} = psql(url, "select 1")
      assert_raise Error, fn -> PgliteEx.connection_opts(branch) end
      assert code(PgliteEx.drop(branch)) == "3D000"
      assert code(PgliteEx.stats(branch)) == "3D000"
    end

    test "no longer than its owner, also when that ends while it is being made", %{server: server} do
      branches = server |> PgliteEx.Server.child(PgliteEx.Branches)
      :erlang.trace(branches, true, [:receive])
      {owner, monitor} = spawn_monitor(fn -> PgliteEx.branch(server, name: "orphan") end)
      # The request has come; the program is at it.
      assert_receive {:trace, ^branches, :receive,
                      {:"$gen_call", _from, {:create, "orphan", _, ^owner}}},
                     10_000

      Process.exit(owner, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^owner, :killed}
      # The end of the process that has made it, and that of the one that has dropped it.
      for _ <- 1..2,
          do: assert_receive({:trace, ^branches, :receive, {:EXIT, _pid, _reason}}, 20_000)

      assert clusters(server) == ["default"]
    end

    test "without an owner until it is dropped", %{server: server} do
      task = Task.async(fn -> PgliteEx.branch!(server, owner: :none) end)
      branch = Task.await(task, 20_000)
      monitor = Process.monitor(task.pid)
      assert_receive {:DOWN, ^monitor, :process, _pid, _reason}
      assert values!(branch, "select 1") == ["1"]
      assert :ok = PgliteEx.drop(branch)
      assert clusters(server) == ["default"]
    end

    test "with another owner than the caller", %{server: server} do
      owner = spawn(fn -> receive do: (:end -> :ok) end)
      branch = PgliteEx.branch!(server, owner: owner)
      send(owner, :end)
      await_dropped(branch)
    end

    @tag :tmp_dir
    test "in a directory, which stays", %{server: server, tmp_dir: directory} do
      data = Path.join(directory, "kept")
      branch = PgliteEx.branch!(server, data: data)
      assert {:ok, %{"data" => ^data}} = PgliteEx.stats(branch)
      values!(branch, "create table t as select 1 as a")
      :ok = PgliteEx.drop(branch)
      # It would not be a branch of the server's cluster as that is now.
      assert {:error, %PgliteEx.Error{code: "55000"}} = PgliteEx.branch(server, data: data)
      again = Servers.start!(data: data)
      assert values!(again, "select a from t") == ["1"]
    end

    test "no longer than the program, and its address says so" do
      server = Servers.start!(on_data_loss: :restart)
      branch = PgliteEx.branch!(server, name: "lost")
      opts = PgliteEx.connection_opts(branch)
      OperatingSystem.kill_program!(server)
      :ok = PgliteEx.await_ready(server, 60_000)
      assert {:error, fields} = WireClient.start_session_with(opts)
      assert WireClient.sqlstate(fields) == "3D000"
      assert fields =~ "cluster \"lost\" does not exist"
      # Its name is free again, and its address is closed for another one's.
      again = PgliteEx.branch!(server, name: "lost")
      assert values!(again, "select 1") == ["1"]
      assert {:error, :econnrefused} = refused(opts)
      assert PgliteEx.connection_opts(again)[:port] != opts[:port]
    end
  end

  test "settings and a name are those of its cluster" do
    server = Servers.start!(settings: [work_mem: "5MB"])
    branch = PgliteEx.branch!(server, name: "by name", settings: [max_connections: 7])
    assert values!(branch, "show pglite.cluster") == ["by name"]

    assert values!(
             branch,
             "select current_setting('max_connections'), current_setting('work_mem')"
           ) == ["7", "5MB"]

    assert {:error, %Error{code: "42710", message: message}} =
             PgliteEx.branch(server, name: "by name")

    assert message =~ "already exists"
    assert {:error, %Error{}} = PgliteEx.branch(server, settings: [no_such_setting: 1])
  end

  test "branches of a server on a unix socket have sockets beside it" do
    directory = Path.join(System.tmp_dir!(), "pglite_ex-branch-#{System.pid()}")
    on_exit(fn -> File.rm_rf!(directory) end)
    server = Servers.start!(listen: {:local, directory})
    [one, two] = for _ <- 1..2, do: PgliteEx.branch!(server)
    values!(one, "create table t as select 1 as a")
    assert {"1\n", 0} = psql(PgliteEx.url(one), "select a from t")
    assert {_error, 1} = psql(PgliteEx.url(two), "select a from t")
    {:local, path} = PgliteEx.address(one)
    assert Path.dirname(path) == directory
    assert {:local, path} != PgliteEx.address(two)
  end

  test "a gate for a branch serves clients of the branch" do
    server = Servers.start!()
    branch = PgliteEx.branch!(server)
    gate = start_supervised!({PgliteEx.Gate, server: branch})
    {client, _key} = WireClient.start_session!(gate)
    assert {:ok, [[name]]} = WireClient.query(client, "show pglite.cluster")
    assert name == branch.name
    refute Keyword.has_key?(PgliteEx.connection_opts(gate), :pool_size)
  end

  test "the function of after_start: can make branches" do
    test = self()
    name = :"branch_test_#{System.unique_integer([:positive])}"
    make = fn _opts -> send(test, {:made, PgliteEx.branch!(name, owner: test)}) end
    Servers.start!(name: name, after_start: make)
    assert_receive {:made, branch}
    assert values!(branch, "select 1") == ["1"]
  end

  test "a branch is a span, and its failure is in it" do
    test = self()
    name = :branch_test_span
    events = for event <- [:start, :stop], do: [:pglite_ex, :branch, event]

    send_it = fn [_, _, event], measurements, metadata, _config ->
      if metadata.server == name, do: send(test, {event, measurements, metadata})
    end

    :ok = :telemetry.attach_many(__MODULE__, events, send_it, nil)
    on_exit(fn -> :telemetry.detach(__MODULE__) end)
    server = Servers.start!(name: name)
    branch = PgliteEx.branch!(server, name: "spanned")

    assert_received {:start, %{monotonic_time: _},
                     %{name: "spanned", origin: {:branch, "default"}}}

    assert_received {:stop, %{duration: _}, %{name: "spanned", error: nil}}
    {:error, error} = PgliteEx.branch(branch, template: "there is none", name: "failed")
    assert_received {:stop, _, %{origin: {:template, "there is none"}, error: ^error}}
  end

  test "a failure of the process that makes branches ends the branches, and nothing else" do
    server = Servers.start!()
    branch = PgliteEx.branch!(server, name: "left")
    dropped = PgliteEx.branch!(server, name: "dropped")
    :ok = PgliteEx.drop(dropped)
    # Nothing of the crashed process.
    {:ok, _} = PgliteEx.request(server, "create_cluster", [{"name", "of another"}])
    opts = PgliteEx.connection_opts(branch)
    program = OperatingSystem.program(server)
    branches = PgliteEx.Server.child(server, PgliteEx.Branches)
    monitor = Process.monitor(branches)
    Process.exit(branches, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^branches, :killed}
    assert {:error, :econnrefused} = refused(opts)
    again = branch_again(server, name: "left")
    assert values!(again, "select 1") == ["1"]
    assert clusters(server) == ["default", "left", "of another"]
    other = branch_again(server, name: "dropped")
    assert clusters(server) == ["default", "dropped", "left", "of another"]
    :ok = PgliteEx.drop(other)
    assert OperatingSystem.program(server) == program
  end

  # The process may not have been started again yet.
  defp branch_again(server, options) do
    case PgliteEx.branch(server, options) do
      {:ok, branch} -> branch
      {:error, %Error{code: "57P01"}} -> branch_again(server, options)
    end
  end

  test "a template is prepared with the server of a branch" do
    name = "branch_test_#{System.unique_integer([:positive])}"
    branch = PgliteEx.branch!(Servers.start!())

    assert {:ok, :built} =
             PgliteEx.prepare(branch, name, fn opts ->
               client = WireClient.start_session_with!(opts)
               {:ok, []} = WireClient.query(client, "create table prepared ()")
               :gen_tcp.close(client)
             end)

    assert {:ok, templates} = PgliteEx.Template.list(branch)
    assert Enum.any?(templates, &(&1.name == name))
    assert :ok = PgliteEx.Template.drop(branch, name)
  end

  test "options that are not allowed are named" do
    server = Servers.start!(mode: :isolated)

    for {options, text} <- [
          {[owner: :me], "owner"},
          {[data: 1], "data"},
          {[name: ""], "name"},
          {[name: "a\0b"], "name"},
          {[database: <<255>>], "database"},
          {[template: :t], "template"},
          {[settings: "x"], "settings"},
          {[colour: :red], "colour"}
        ] do
      error = assert_raise(ArgumentError, fn -> PgliteEx.branch(server, options) end)
      assert Exception.message(error) =~ text
    end
  end

  @tag :tmp_dir
  test "a branch that the program does not drop is reported", %{tmp_dir: directory} do
    made = {:reply, 1, :ok, [{"name", "b"}, {"database", "postgres"}]}
    not_dropped = {:reply, 2, :error, [{"code", "58030"}, {"message", "no"}, {"hint", "try"}]}

    shell =
      "hello; head -c 5 >/dev/null; frame 1; read line < #{directory}/gate; frame 2; cat > /dev/null"

    gate = BadProgram.make_gate!(directory)
    program = BadProgram.write!(directory, shell, [made, not_dropped])
    server = Servers.start!(executable: program, name: :branch_test_not_dropped)
    owner = spawn(fn -> receive do: (:end -> :ok) end)
    assert {:ok, branch} = PgliteEx.branch(server, owner: owner, name: "b")
    branches = Parts.whereis(Parts.registry!(server), PgliteEx.Branches)
    :erlang.trace(branches, true, [:receive])

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        send(owner, :end)
        assert_receive {:trace, ^branches, :receive, {:DOWN, _, _, ^owner, _}}
        BadProgram.open_gate!(gate)
        assert_receive {:trace, ^branches, :receive, {:EXIT, _pid, _reason}}, 10_000
        # It has logged before it answers.
        assert {:error, %Error{}} = PgliteEx.Branches.ask(branches, {:gate, branch})
      end)

    assert log =~ "the branch b of a process that has ended is not dropped: no"
    assert log =~ "hint: try"
  end
end
