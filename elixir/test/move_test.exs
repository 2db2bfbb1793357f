defmodule PgliteEx.MoveTest do
  @moduledoc "Databases that move to an installed PostgreSQL while they are in use."
  # Environment variables are the VM's, and so is the shell of Mix.
  use ExUnit.Case, async: false

  alias PgliteEx.{Error, NativePostgres, OperatingSystem, Servers, WireClient}

  unless NativePostgres.programs() do
    reason =
      "no PostgreSQL is installed below /usr/lib/postgresql, nor in PGLITE_PORT_BENCH_POSTGRES"

    IO.puts(:stderr, "PgliteEx.MoveTest is skipped: #{reason}")
    @moduletag skip: reason
  end

  @logical [settings: [wal_level: "logical"]]
  @secured [auth: :scram_sha_256, password: "the:source\\secret"]
  @left "select (select count(*) from pg_publication), (select count(*) from pg_replication_slots)"

  setup do
    %{target: NativePostgres.start!()}
  end

  defp source!(options \\ @logical) do
    server = Servers.start!([database: "app"] ++ options)

    query(PgliteEx.connection_opts(server), """
    create table notes (id bigserial primary key, text text);
    insert into notes (text) select 'note ' || i from generate_series(1, 1000) i;
    create table empty_one (id int primary key)
    """)

    server
  end

  defp query(connection_opts, sql) do
    session = WireClient.start_session_with!(connection_opts)
    {:ok, rows} = WireClient.query(session, sql)
    :gen_tcp.close(session)
    rows
  end

  defp url(target, database, user \\ "postgres"),
    do: "postgresql://#{user}@127.0.0.1:#{target[:port]}/#{database}"

  defp in_database(target, database), do: Keyword.put(target, :database, database)

  # Inserts until it cannot write any more; the number of rows that were committed.
  defp write(session, count \\ 0) do
    case WireClient.query(session, "insert into notes (text) values ('meanwhile')") do
      {:ok, []} -> write(session, count + 1)
      _refused_or_closed -> count
    end
  end

  # The command lines of all processes.
  defp command_lines do
    for path <- Path.wildcard("/proc/[0-9]*/cmdline"), {:ok, line} <- [File.read(path)], do: line
  end

  test "a database moves while it is written to, and no row is lost", %{target: target} do
    source = source!()
    session = WireClient.start_session_with!(PgliteEx.connection_opts(source))
    writer = Task.async(fn -> write(session) end)
    test = self()

    at_the_switch = fn
      {:switched, _line} ->
        # The target takes writes from here on.
        query(in_database(target, "moved"), "insert into notes (text) values ('switched')")
        send(test, :switched)

      {:progress, line} ->
        send(test, {:progress, line})
    end

    Process.flag(:trap_exit, true)
    result = PgliteEx.move(source, url(target, "moved"), on_progress: at_the_switch)
    # The sessions of the source were ended.
    committed = Task.await(writer, 60_000)
    assert committed > 0
    rows = 1_000 + committed

    assert result ==
             {:ok,
              [
                %{table: "public.empty_one", rows: 0, rows_in_target: 0, same?: true},
                %{table: "public.notes", rows: rows, rows_in_target: rows, same?: true}
              ]}

    assert_received :switched
    assert_received {:progress, "2 tables to move"}
    counts = "select count(*), count(*) filter (where text = 'switched') from notes"
    assert query(in_database(target, "moved"), counts) == [["#{rows + 1}", "1"]]
    late = WireClient.start_session_with!(PgliteEx.connection_opts(source))
    assert {:error, "25006"} = WireClient.query(late, "insert into notes (text) values ('late')")
    # Nothing of the run is left to the process, which may be one that handles all its messages.
    {:messages, left} = Process.info(self(), :messages)

    refute Enum.any?(
             left,
             &(is_port(elem(&1, 0)) or (elem(&1, 0) == :EXIT and is_port(elem(&1, 1))))
           )
  end

  test "what cannot be moved is an error with the program's sentence", %{target: target} do
    source = source!([])
    to = url(target, "moved")
    assert {:error, %Error{code: :move_failed, message: message}} = PgliteEx.move(source, to)
    assert message =~ "wal_level of the source is replica"
    refute message =~ "pglite-port: "
    isolated = Servers.start!(mode: :isolated)
    assert {:error, %Error{code: "0A000"}} = PgliteEx.move(isolated, to)

    for url <- [
          "host=db password=secret",
          ~c"postgresql://postgres:secret@db/app",
          "postgresql://postgres:secret\0@db/app"
        ] do
      error = assert_raise ArgumentError, fn -> PgliteEx.move(source, url) end
      refute error.message =~ "secret"
    end

    for url <- [~c"postgresql://secret", "postgresql://postgres:secret\0@db/app"] do
      move = fn -> PgliteEx.move(source, to, source_for_target: url) end
      error = assert_raise ArgumentError, ~r/source_for_target: a URL/, move
      refute error.message =~ "secret"
    end

    Mix.shell(Mix.Shell.Process)
    on_exit(fn -> Mix.shell(Mix.Shell.IO) end)

    assert_raise Mix.Error, ~r/wal_level of the source is replica/, fn ->
      Mix.Tasks.PgliteEx.Move.run([PgliteEx.url(source), "--to", to])
    end

    bare = source!()
    query(PgliteEx.connection_opts(bare), "create table bare (i int)")
    assert {:error, %Error{message: message}} = PgliteEx.move(bare, to)

    assert message =~
             "or one that is deferrable; run on the source:\n  alter table public.bare replica identity full;"
  end

  describe "a move that is broken off leaves both sides as they were" do
    # It would never end by itself: replication begins when the transactions of the source have ended.
    setup %{target: target} do
      source = source!()
      open = WireClient.start_session_with!(PgliteEx.connection_opts(source))

      {:ok, _rows} =
        WireClient.query(open, "begin; insert into notes (text) values ('not committed')")

      on_exit(fn -> :gen_tcp.close(open) end)
      %{source: source, to: url(target, "moved"), options: []}
    end

    defp assert_undone(source, target) do
      assert query(PgliteEx.connection_opts(source), @left) == [["0", "0"]]
      # Its database was made for the move.
      databases = "select count(*) from pg_database where datname = 'moved'"
      assert query(target, databases) == [["0"]]
      query(PgliteEx.connection_opts(source), "insert into notes (text) values ('as before')")
    end

    defp await_slot(source) do
      if query(PgliteEx.connection_opts(source), "select count(*) from pg_replication_slots") == [
           ["0"]
         ],
         do: await_slot(source)
    end

    # The process id of the program that moves to this URL.
    defp program(to) do
      [program] =
        for path <- Path.wildcard("/proc/[0-9]*/cmdline"),
            {:ok, line} <- [File.read(path)],
            ["move", _source, "--to", ^to | _] <- [line |> String.split(<<0>>) |> tl()],
            do: path |> Path.dirname() |> Path.basename()

      program
    end

    test "because the process has ended that has called it", context do
      %{source: source, to: to, target: target} = context
      caller = spawn(fn -> PgliteEx.move(source, to, context.options) end)
      await_slot(source)

      program = program(to)
      Process.exit(caller, :kill)
      assert OperatingSystem.ended_within?(program, 60)
      assert_undone(source, target)
    end

    test "because it takes too long, or the function fails", context do
      %{source: source, to: to, target: target} = context

      assert {:error, %Error{code: :timeout, message: message}} =
               PgliteEx.move(source, to, [timeout: 4_000] ++ context.options)

      assert message =~ "the move was broken off"
      assert_undone(source, target)
      test = self()

      fail = fn {:progress, line} ->
        if line =~ "has the schema" do
          send(test, {:program, program(to)})
          raise "it fails"
        end
      end

      assert_raise RuntimeError, "it fails", fn ->
        PgliteEx.move(source, to, [on_progress: fail] ++ context.options)
      end

      assert_received {:program, program}
      assert OperatingSystem.ended_within?(program, 60)
      assert_undone(source, target)
      refute_received _nothing
    end
  end

  # Lets nobody into the target without this password any more.
  defp want_password!(target, password) do
    session = WireClient.start_session_with!(target)
    loaded = "select pg_conf_load_time()"
    {:ok, before} = WireClient.query(session, loaded)

    {:ok, [["t"]]} =
      WireClient.query(session, """
      alter role postgres password '#{password}';
      do $$ begin
        execute format('copy (select %L) to %L', 'host all all 127.0.0.1/32 scram-sha-256',
          current_setting('hba_file'));
      end $$;
      select pg_reload_conf()
      """)

    # The server has read it before it tells its sessions.
    await_other(session, loaded, before)
    :gen_tcp.close(session)
  end

  defp await_other(session, sql, before) do
    if WireClient.query(session, sql) == {:ok, before}, do: await_other(session, sql, before)
  end

  @tag :tmp_dir
  test "passwords are not in the list of processes, and a role made for it subscribes", %{
    target: target,
    tmp_dir: directory
  } do
    source = Servers.start!([database: "app"] ++ @logical ++ @secured)
    path = Path.join(directory, "app.sql")

    File.write!(path, """
    create table notes (id int primary key);
    insert into notes values (1), (2);
    create role mover login replication password 'once' in role pg_read_all_data;
    """)

    {:ok, _} = PgliteEx.load(source, path)
    want_password!(target, "the target")
    to = url(target, "moved", "postgres:the%20target")
    assert {:error, %Error{code: :invalid_options, message: message}} = PgliteEx.move(source, to)
    assert message =~ "source_for_target:"
    test = self()
    tell = fn _event -> send(test, {:lines, command_lines()}) end
    {_address, port} = PgliteEx.address(source)
    mover = "postgresql://mover:once@127.0.0.1:#{port}/app"
    assert {:ok, tables} = PgliteEx.move(source, to, on_progress: tell, source_for_target: mover)
    assert Enum.all?(tables, & &1.same?)
    assert_received {:lines, lines}
    assert Enum.any?(lines, &(&1 =~ url(target, "moved")))

    refute Enum.any?(lines, &(&1 =~ ~r/source(\\|%5C)secret|the( |%20)target/))
    # The target's password may also be in the environment.
    on_exit(fn -> System.delete_env("PGPASSWORD") end)
    to = url(target, "moved")

    for {password, refusal} <- [
          {"the target", "has a database \"moved\" already"},
          {"wrong", "password authentication failed"}
        ] do
      System.put_env("PGPASSWORD", password)
      result = PgliteEx.move(source, to, source_for_target: mover)
      assert {:error, %Error{code: :move_failed, message: message}} = result
      assert message =~ refusal
    end
  end

  test "the guide's function points the repo to the target at the switch", %{target: target} do
    guide = File.read!(Path.join(__DIR__, "../guides/moving_out.md"))

    [code] =
      Regex.run(~r/```elixir\n(# lib\/my_app\/moving.ex\n.*?)```/s, guide, capture: :all_but_first)

    [{moving, _binary}] = Code.compile_string(code)
    on_exit(fn -> Application.delete_env(:my_app, :moved_to) end)
    source!(@logical ++ [name: MyApp.Postgres])
    # As that of a repo, its start asks where the database is.
    start = {Agent, :start_link, [Application, :get_env, [:my_app, :moved_to]]}
    repo = %{id: MyApp.Repo, start: start}
    children = [strategy: :rest_for_one, name: MyApp.Supervisor]

    start_supervised!(%{
      id: :app,
      start: {Supervisor, :start_link, [[repo], children]},
      type: :supervisor
    })

    pointed_to = fn ->
      [{MyApp.Repo, pid, _type, _modules}] = Supervisor.which_children(MyApp.Supervisor)
      Agent.get(pid, & &1)
    end

    assert {:error, _error} = moving.run(url(target, "moved"), timeout: 0)
    assert pointed_to.() == nil
    assert {:ok, tables} = moving.run(url(target, "moved"))
    assert Enum.all?(tables, & &1.same?)
    assert pointed_to.() == url(target, "moved")
  end

  test "a branch moves, and its origin is as it was", %{target: target} do
    source = source!()
    branch = PgliteEx.branch!(source)
    assert {:ok, tables} = PgliteEx.move(branch, url(target, "moved"))
    assert Enum.map(tables, & &1.rows_in_target) == [0, 1_000]
    late = WireClient.start_session_with!(PgliteEx.connection_opts(branch))
    assert {:error, "25006"} = WireClient.query(late, "insert into notes (text) values ('late')")
    query(PgliteEx.connection_opts(source), "insert into notes (text) values ('as before')")
  end

  test "the task prints the progress, and the tables", %{target: target} do
    Mix.shell(Mix.Shell.Process)
    on_exit(fn -> Mix.shell(Mix.Shell.IO) end)
    source = source!()
    Mix.Tasks.PgliteEx.Move.run([PgliteEx.url(source), "--to", url(target, "moved")])
    assert_received {:mix_shell, :info, ["2 tables to move"]}
    assert_received {:mix_shell, :info, ["public.notes: 1000 rows, 1000 in the target"]}

    for {arguments, named} <- [
          {[], ~r/--to/},
          {["postgresql://a/b"], ~r/--to/},
          {["a", "blue"], ~r/blue/}
        ],
        do: assert_raise(Mix.Error, named, fn -> Mix.Tasks.PgliteEx.Move.run(arguments) end)
  end
end
