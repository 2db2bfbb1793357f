Code.require_file("../../test/support/operating_system.ex", __DIR__)

defmodule Integration.LiveQueryTest do
  @moduledoc "The code of the guide \"A live query\", in the application of \"An application's own database\"."
  # It starts an application, and each test another one.
  use ExUnit.Case, async: false

  import Integration.Guide, only: [files: 1]

  alias PgliteEx.OperatingSystem

  @moduletag mode: :shared
  @moduletag :tmp_dir
  @moduletag timeout: 120_000

  # Those of the guides.
  @compile {:no_warn_undefined,
            [MyApp.Application, MyApp.Changes, MyApp.Changes.Message, MyApp.LiveQuery, MyApp.Repo]}

  @files Map.merge(files("an_applications_own_database.md"), files("live_query.md"))
  @notes {"public", "notes"}

  setup_all do
    # `test_helper.exs` has compiled the decoder, which other tests use at the same time.
    modules = for {"lib/" <> name, code} <- @files, name != "my_app/changes/message.ex", do: code

    migrations =
      for {"priv/repo/migrations/" <> name, code} <- @files, into: %{}, do: {name, code}

    "live_query.md" |> Integration.Guide.load_application!(migrations, modules) |> on_exit()
  end

  setup %{tmp_dir: directory} = context do
    files = for name <- ["config/config.exs", "config/replication.exs"], do: {name, @files[name]}
    configs = for {name, text} <- files, do: Config.Reader.eval!(name, text, env: :test)
    # As Mix merges files.
    Application.put_all_env(Enum.reduce(configs, &Config.Reader.merge(&2, &1)))

    data = if context[:memory], do: [], else: [data: Path.join(directory, "pgdata")]
    options = Application.fetch_env!(:my_app, MyApp.Postgres) ++ data
    limit = Map.get(context, :limit, "1GB")
    options = put_in(options[:settings][:max_slot_wal_keep_size], limit)
    Application.put_env(:my_app, MyApp.Postgres, options)
    start_application()
    :ok
  end

  defp start_application do
    start = {MyApp.Application, :start, [:normal, []]}
    start_supervised!(%{id: MyApp, start: start, type: :supervisor})
  end

  defp kill_program do
    OperatingSystem.kill_program!(MyApp.Postgres)
    :ok = PgliteEx.await_ready(MyApp.Postgres, 60_000)
  end

  # A pool notices at its next query that a connection is gone.
  defp query!(sql, deadline \\ System.monotonic_time(:millisecond) + 30_000) do
    MyApp.Repo.query!(sql)
  rescue
    error in DBConnection.ConnectionError ->
      if System.monotonic_time(:millisecond) > deadline, do: reraise(error, __STACKTRACE__)
      query!(sql, deadline)
  end

  # Of everything that was committed until now.
  defp await_confirmation do
    [[lsn]] = query!("select pg_current_wal_flush_lsn()::text").rows
    await_confirmation(lsn, System.monotonic_time(:millisecond) + 30_000)
  end

  defp await_confirmation(lsn, deadline) do
    [[confirmed]] =
      query!("select confirmed_flush_lsn >= '#{lsn}' from pg_replication_slots").rows

    unless confirmed do
      assert System.monotonic_time(:millisecond) < deadline, "#{lsn} is not confirmed"
      await_confirmation(lsn, deadline)
    end
  end

  test "a subscriber is told every change of its table, and of no other" do
    query!("create table others (id int primary key)")
    :ok = MyApp.Changes.subscribe("notes")

    query!("insert into others values (1)")
    query!("insert into notes (text) values ('one'), (null)")

    assert_receive {:changes, @notes, inserted}, 10_000

    assert inserted == [
             insert: %{"id" => "1", "text" => "one"},
             insert: %{"id" => "2", "text" => nil}
           ]

    query!("update notes set text = 'two' where id = 2")
    assert_receive {:changes, @notes, [{:update, nil, %{"id" => "2", "text" => "two"}}]}, 10_000

    query!("update notes set id = 3 where id = 2")
    assert_receive {:changes, @notes, [{:update, old, %{"id" => "3", "text" => "two"}}]}, 10_000
    assert old == %{"id" => "2"}

    query!("delete from notes where id = 3")
    assert_receive {:changes, @notes, [delete: deleted]}, 10_000
    assert deleted == %{"id" => "3"}

    query!("truncate others, notes")
    assert_receive {:changes, @notes, [:truncate]}, 10_000
    refute_received _anything_else
  end

  test "the changes of a transaction arrive together, and none of one that was rolled back" do
    :ok = MyApp.Changes.subscribe("notes")

    MyApp.Repo.transaction(fn ->
      query!("insert into notes (text) values ('never')")
      MyApp.Repo.rollback(:never)
    end)

    MyApp.Repo.transaction(fn ->
      query!("insert into notes (text) values ('a')")
      query!("insert into notes (text) values ('b')")
      refute_received {:changes, _table, _changes}
    end)

    assert_receive {:changes, @notes, [insert: %{"text" => "a"}, insert: %{"text" => "b"}]},
                   10_000
  end

  test "a live query is run again when its table has changed" do
    {:ok, query} =
      MyApp.LiveQuery.start_link(
        fn -> query!("select text from notes order by id").rows end,
        ["notes"]
      )

    assert_receive {:live_query, ^query, []}, 10_000

    # From outside of the application.
    psql = ["-c", "insert into notes (text) values ('from psql')", PgliteEx.url(MyApp.Postgres)]
    assert {"INSERT 0 1\n", 0} = System.cmd("psql", psql)
    assert_receive {:live_query, ^query, [["from psql"]]}, 10_000

    query!("update notes set text = 'changed'")
    assert_receive {:live_query, ^query, [["changed"]]}, 10_000
  end

  test "nothing is lost, and nothing comes twice, when the program is killed" do
    :ok = MyApp.Changes.subscribe("notes")
    query!("insert into notes (text) values ('told')")
    assert_receive {:changes, @notes, [insert: %{"text" => "told"}]}, 10_000

    # It hears of the next commits when the program is another one already.
    :sys.suspend(MyApp.Changes)
    query!("insert into notes (text) values ('before')")
    kill_program()
    query!("insert into notes (text) values ('after')")
    :sys.resume(MyApp.Changes)

    assert_receive {:changes, @notes, [insert: %{"text" => first}]}, 20_000
    assert_receive {:changes, @notes, [insert: %{"text" => second}]}, 20_000
    assert {first, second} == {"before", "after"}
    query!("insert into notes (text) values ('last')")
    assert_receive {:changes, @notes, [insert: %{"text" => third}]}, 20_000
    assert third == "last"
    refute_received :changes_missed
  end

  test "a subscriber gets what was committed while the application did not listen" do
    :ok = Supervisor.terminate_child(MyApp.Supervisor, MyApp.Changes)
    query!("insert into notes (text) values ('meanwhile')")
    :ok = MyApp.Changes.subscribe("notes")
    {:ok, _changes} = Supervisor.restart_child(MyApp.Supervisor, MyApp.Changes)
    assert_receive {:changes, @notes, [insert: %{"text" => "meanwhile"}]}, 20_000
    refute_received :changes_missed
  end

  test "the slot is there after a restart of the application, and what was confirmed is not sent again" do
    :ok = MyApp.Changes.subscribe("notes")
    query!("insert into notes (text) values ('told')")
    assert_receive {:changes, @notes, [insert: %{"text" => "told"}]}, 10_000
    await_confirmation()
    # The registry ends those who have subscribed.
    Process.flag(:trap_exit, true)
    :ok = stop_supervised(MyApp)

    start_application()
    :ok = MyApp.Changes.subscribe("notes")
    query!("insert into notes (text) values ('then')")
    assert_receive {:changes, @notes, changes}, 10_000
    assert [insert: %{"text" => "then"}] = changes
  end

  test "a second subscriber takes over when the first has gone" do
    :ok = MyApp.Changes.subscribe("notes")
    {:ok, second} = MyApp.Changes.start_link(name: nil)
    query!("insert into notes (text) values ('of the first')")
    assert_receive {:changes, @notes, [insert: %{"text" => "of the first"}]}, 10_000
    assert {_module, %{step: :look}} = :sys.get_state(second) |> elem(1) |> Map.fetch!(:state)

    :ok = Supervisor.terminate_child(MyApp.Supervisor, MyApp.Changes)
    query!("insert into notes (text) values ('of the second')")
    # What the first has not confirmed comes again.
    assert await_text("of the second") in [1, 2]
    refute_received :changes_missed
  end

  defp await_text(text, count \\ 1) do
    assert_receive {:changes, @notes, [insert: %{"text" => received}]}, 30_000
    if received == text, do: count, else: await_text(text, count + 1)
  end

  @tag limit: "1MB"
  test "subscribers are told when the slot was too far behind" do
    :ok = Supervisor.terminate_child(MyApp.Supervisor, MyApp.Changes)
    # A segment of the WAL has 16 MB.
    for _segment <- 1..3,
        do: query!("select pg_switch_wal(), pg_logical_emit_message(true, '', 'x')")

    query!("checkpoint")
    assert query!("select wal_status from pg_replication_slots").rows == [["lost"]]

    :ok = MyApp.Changes.subscribe("notes")
    {:ok, _changes} = Supervisor.restart_child(MyApp.Supervisor, MyApp.Changes)
    assert_receive :changes_missed, 20_000
    query!("insert into notes (text) values ('again')")
    assert_receive {:changes, @notes, [insert: %{"text" => "again"}]}, 20_000
  end

  @tag :memory
  test "the decoder reads messages of every kind" do
    for sql <- [
          "create type mood as enum ('glad')",
          "create table kinds (id int primary key, mood mood, long text, bytes bytea)",
          "alter table kinds alter long set storage external",
          "create table whole (id int, text text)",
          "alter table whole replica identity full",
          "select pg_create_logical_replication_slot('kinds', 'pgoutput')",
          "insert into kinds values (1, 'glad', repeat('long', 1000), null)",
          "update kinds set bytes = '\\x00ff'",
          "update kinds set id = 2",
          "delete from kinds",
          "insert into whole values (1, 'ünïcode'), (2, null)",
          "update whole set text = '' where id = 2",
          "delete from whole where id = 1",
          "truncate kinds, whole",
          "select pg_logical_emit_message(false, 'prefix', 'content')",
          "select pg_replication_origin_create('elsewhere')"
        ],
        do: query!(sql)

    MyApp.Repo.checkout(fn ->
      query!("select pg_replication_origin_session_setup('elsewhere')")
      query!("insert into whole values (3, '')")
      query!("select pg_replication_origin_session_reset()")
    end)

    long = String.duplicate("long", 1000)
    messages = decoded("'messages', 'true'")
    ids = for {:relation, id, {"public", table}, _columns} <- messages, into: %{}, do: {table, id}
    %{"kinds" => kinds, "whole" => whole} = ids

    for expected <- [
          {:relation, kinds, {"public", "kinds"}, ["id", "mood", "long", "bytes"]},
          {:relation, whole, {"public", "whole"}, ["id", "text"]},
          {:insert, kinds, ["1", "glad", long, nil]},
          {:update, kinds, nil, ["1", "glad", :unknown, "\\x00ff"]},
          {:update, kinds, ["1", :unknown, :unknown, :unknown],
           ["2", "glad", :unknown, "\\x00ff"]},
          {:delete, kinds, ["2", :unknown, :unknown, :unknown]},
          {:insert, whole, ["1", "ünïcode"]},
          {:insert, whole, ["2", nil]},
          {:update, whole, ["2", nil], ["2", ""]},
          {:delete, whole, ["1", "ünïcode"]},
          {:truncate, [kinds, whole]},
          {:message, false, "prefix", "content"},
          {:origin, "elsewhere"}
        ],
        do: assert(expected in messages)

    # Before each message about the table.
    types = Enum.uniq(Enum.filter(messages, &(elem(&1, 0) == :type)))
    assert [{:type, _id, {"public", "mood"}}] = types
    count = fn kind -> Enum.count(messages, &(elem(&1, 0) == kind)) end
    assert count.(:begin) == 9
    assert count.(:commit) == 9

    assert {:insert, kinds, [{:binary, <<1::32>>}, {:binary, "glad"}, {:binary, long}, nil]} in decoded(
             "'binary', 'true'"
           )
  end

  defp decoded(option) do
    query!("""
    select data from pg_logical_slot_peek_binary_changes(
      'kinds', null, null, 'proto_version', '1', 'publication_names', 'my_app', #{option})
    """).rows
    |> Enum.map(fn [message] -> MyApp.Changes.Message.decode(message) end)
  end

  @tag :memory
  test "subscribers are told when a cluster in memory is gone" do
    :ok = MyApp.Changes.subscribe("notes")
    kill_program()
    assert_receive :changes_missed, 20_000
    query!("insert into notes (text) values ('new')")
    assert_receive {:changes, @notes, [insert: %{"id" => "1", "text" => "new"}]}, 20_000
  end
end
