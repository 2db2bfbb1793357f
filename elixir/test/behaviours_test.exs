defmodule PgliteEx.BehavioursTest do
  @moduledoc "One list of behaviours, run against both modes, over TCP and over a unix socket."
  use ExUnit.Case, async: true

  alias PgliteEx.{Servers, WireClient}

  for mode <- [:shared, :isolated], place <- [:tcp, :unix] do
    describe "#{mode} over #{place}:" do
      setup do
        %{server: Servers.start!(mode: unquote(mode), listen: listen(unquote(place)))}
      end

      test "a client gets its answers", %{server: server} do
        {client, _key} = WireClient.start_session!(server)
        assert {:ok, [["1", nil]]} = WireClient.query(client, "select 1, null")
        assert {:error, "22012"} = WireClient.query(client, "select 1/0")
        assert {:ok, [["still here"]]} = WireClient.query(client, "select 'still here'")
      end

      test "psql connects with the URL", %{server: server} do
        arguments = [PgliteEx.url(server), "-Atc", "show server_version_num"]
        assert {"18" <> _rest, 0} = System.cmd("psql", arguments, stderr_to_stdout: true)
      end

      test "a client that asks for encryption is told no, and goes on without",
           %{server: server} do
        client = WireClient.connect!(server)
        :ok = :gen_tcp.send(client, WireClient.ssl_request())
        assert {:ok, "N"} = :gen_tcp.recv(client, 1, 10_000)
        :ok = :gen_tcp.send(client, WireClient.startup_packet())
        assert {:ok, [{?R, <<0::32>>} | _]} = WireClient.receive_answer(client)
      end

      test "a startup packet may come byte by byte", %{server: server} do
        client = WireClient.connect!(server, nodelay: true)
        for <<byte <- WireClient.startup_packet()>>, do: :ok = :gen_tcp.send(client, <<byte>>)
        assert {:ok, [{?R, <<0::32>>} | _]} = WireClient.receive_answer(client)
      end

      test "a result much larger than the window comes whole", %{server: server} do
        {client, _key} = WireClient.start_session!(server)
        sql = "select repeat(i::text, 1000) from generate_series(10001, 14000) i"
        assert {:ok, rows} = WireClient.query(client, sql)
        assert length(rows) == 4_000
        assert List.last(rows) == [String.duplicate("14000", 1_000)]
      end

      test "a statement much larger than the window is taken whole", %{server: server} do
        {client, _key} = WireClient.start_session!(server)
        text = String.duplicate("0123456789", 300_000)
        sql = "select length('#{text}'), md5('#{text}')"
        md5 = :md5 |> :crypto.hash(text) |> Base.encode16(case: :lower)
        assert {:ok, [["3000000", ^md5]]} = WireClient.query(client, sql)
      end

      test "a client that says goodbye is let go, and its session with it", %{server: server} do
        {client, _key} = WireClient.start_session!(server)
        :ok = :gen_tcp.send(client, WireClient.terminate_message())
        assert {:error, :closed} = :gen_tcp.recv(client, 0, 10_000)
        assert :ok = Servers.await_connections(server, 0)
      end

      test "garbage instead of a startup packet gets no answer, and the others go on",
           %{server: server} do
        {other, _key} = WireClient.start_session!(server)
        garbage = WireClient.connect!(server)
        :ok = :gen_tcp.send(garbage, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert {:error, :closed} = WireClient.receive_message(garbage)
        assert {:ok, [["1"]]} = WireClient.query(other, "select 1")
      end

      test "a session knows where its client is", %{server: server} do
        {client, _key} = WireClient.start_session!(server)

        sql =
          "select host(inet_client_addr()), inet_client_port(), host(inet_server_addr()), inet_server_port()"

        expected =
          case {:inet.sockname(client), PgliteEx.address(server)} do
            {{:ok, {{127, 0, 0, 1}, client_port}}, {_host, port}} ->
              ["127.0.0.1", "#{client_port}", "127.0.0.1", "#{port}"]

            {_unix, {:local, _path}} ->
              [nil, nil, nil, nil]
          end

        assert {:ok, [^expected]} = WireClient.query(client, sql)
      end

      test "sessions run beside each other", %{server: server} do
        clients = for _ <- 1..5, do: elem(WireClient.start_session!(server), 0)

        for {client, n} <- Enum.with_index(clients) do
          assert {:ok, [[answer]]} = WireClient.query(client, "select #{n}")
          assert answer == "#{n}"
        end
      end

      test "a server that stops tells its clients", %{server: server} do
        {client, _key} = WireClient.start_session!(server)
        :ok = PgliteEx.stop(server)
        assert {:ok, {?E, fields}} = WireClient.receive_message(client)
        assert WireClient.sqlstate(fields) == "57P01"
        assert {:error, :closed} = :gen_tcp.recv(client, 0, 10_000)
      end
    end
  end

  test "isolated connections see databases of their own" do
    server = Servers.start!(mode: :isolated)
    {one, _key} = WireClient.start_session!(server)
    {another, _key} = WireClient.start_session!(server)
    assert {:ok, []} = WireClient.query(one, "create table only_mine (id int)")
    assert {:error, "42P01"} = WireClient.query(another, "select * from only_mine")
  end

  @tag :sessions
  test "shared connections see one database" do
    server = Servers.start!(mode: :shared)
    {one, _key} = WireClient.start_session!(server)
    {another, _key} = WireClient.start_session!(server)
    assert {:ok, []} = WireClient.query(one, "create table for_all (id int)")
    assert {:ok, []} = WireClient.query(another, "insert into for_all values (1)")
    assert {:ok, [["1"]]} = WireClient.query(one, "select id from for_all")
  end

  test "any number of servers run beside each other, under names or without" do
    servers = for name <- [nil, :one_server, :another_server], do: Servers.start!(name: name)
    assert [_, _, _] = servers |> Enum.map(&PgliteEx.url/1) |> Enum.uniq()
    assert PgliteEx.url(:one_server) == PgliteEx.url(Enum.at(servers, 1))
  end

  defp listen(:tcp), do: {"127.0.0.1", 0}

  defp listen(:unix) do
    directory = Path.join(System.tmp_dir!(), "pglite_ex-#{System.unique_integer([:positive])}")
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(directory) end)
    {:local, directory}
  end
end
