defmodule PgliteEx.SslTest do
  @moduledoc "Encrypted connections to a server's socket, with a certificate authority that is made here."
  use ExUnit.Case, async: true

  alias PgliteEx.{Authority, Servers, Transport, WireClient}

  doctest Transport

  setup_all do
    %{server_config: server, client_config: client} = Authority.make()
    %{server: server, client: client}
  end

  # A TLS client that has asked for encryption.
  defp connect(server, options) do
    socket = WireClient.connect!(server)
    :ok = :gen_tcp.send(socket, WireClient.ssl_request())
    with {:ok, "S"} <- :gen_tcp.recv(socket, 1, 10_000), do: begin_tls(socket, options)
  end

  defp begin_tls(socket, options) do
    verified = [verify: :verify_peer, server_name_indication: 'localhost', active: false]
    :ssl.connect(socket, Keyword.merge(verified, options), 10_000)
  end

  # One that begins with TLS at once.
  defp connect_directly(server, options),
    do: begin_tls(WireClient.connect!(server), options)

  defp ask(socket, sql) do
    :ok = :ssl.send(socket, WireClient.query_message(sql))

    rows =
      for {?D, <<1::16, size::32, text::binary-size(size)>>} <- until_ready(socket, <<>>),
          do: text

    rows
  end

  defp until_ready(socket, bytes) do
    if WireClient.ready?(bytes) do
      messages(bytes)
    else
      more =
        case :ssl.recv(socket, 0, 30_000) do
          {:ok, more} -> more
          other -> flunk("#{inspect(other)} after #{inspect(bytes, binaries: :as_strings)}")
        end

      until_ready(socket, bytes <> more)
    end
  end

  defp messages(<<>>), do: []

  defp messages(<<type, size::32, rest::binary>>) do
    <<body::binary-size(size - 4), rest::binary>> = rest
    [{type, body} | messages(rest)]
  end

  for mode <- [:shared, :isolated] do
    test "#{mode}: a client that verifies the server has an encrypted session", context do
      server = Servers.start!(mode: unquote(mode), ssl: context.server)

      for version <- [:"tlsv1.2", :"tlsv1.3"],
          alpn <- [[], [alpn_advertised_protocols: ["postgresql"]]] do
        {:ok, socket} = connect(server, context.client ++ [versions: [version]] ++ alpn)
        :ok = :ssl.send(socket, WireClient.startup_packet())
        until_ready(socket, <<>>)
        assert ask(socket, "select 1") == ["1"]
        assert [large] = ask(socket, "select repeat('x', 3000000)")
        assert byte_size(large) == 3_000_000
        :ssl.close(socket)
      end

      assert :ok = Servers.await_connections(server, 0)
      # Encryption is the client's choice.
      {plain, _key} = WireClient.start_session!(server)
      assert {:ok, [["1"]]} = WireClient.query(plain, "select 1")
    end
  end

  test "a startup packet in pieces, and one that begins like the request for TLS, are passed on",
       context do
    server = Servers.start!(ssl: context.server)
    socket = WireClient.connect!(server)

    for <<byte <- WireClient.startup_packet()>>, do: :ok = :gen_tcp.send(socket, <<byte>>)
    assert {:ok, _messages} = WireClient.receive_answer(socket)
    gssenc = WireClient.connect!(server)
    :ok = :gen_tcp.send(gssenc, <<8::32, 1234::16, 5680::16>>)
    assert {:ok, "N"} = :gen_tcp.recv(gssenc, 1, 10_000)
  end

  test "a web page's request gets nothing from a server with a certificate either", context do
    server = Servers.start!(ssl: context.server)
    socket = WireClient.connect!(server)
    :ok = :gen_tcp.send(socket, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert {:error, reason} = :gen_tcp.recv(socket, 0, 10_000)
    assert reason in [:closed, :econnreset]
    # A page at an https address, with the protocols that a browser offers.
    browser = context.client ++ [alpn_advertised_protocols: ["h2", "http/1.1"]]

    assert {:error, {:tls_alert, {:no_application_protocol, _text}}} =
             connect_directly(server, browser)

    assert :ok = Servers.await_connections(server, 0)
  end

  test "bytes that follow the request before its answer end the connection", context do
    server = Servers.start!(ssl: context.server)
    socket = WireClient.connect!(server)
    :ok = :gen_tcp.send(socket, [WireClient.ssl_request(), WireClient.startup_packet()])
    assert {:error, _closed} = :gen_tcp.recv(socket, 0, 10_000)
    assert :ok = Servers.await_connections(server, 0)
  end

  test "a client that does not trust the server, or asks for an old version, has no session",
       context do
    server = Servers.start!(ssl: [versions: [:"tlsv1.3"]] ++ context.server)
    %{client_config: stranger} = Authority.make()
    assert {:error, {:tls_alert, _unknown_ca}} = connect(server, stranger)

    assert {:error, _alert_or_closed} =
             connect(server, context.client ++ [versions: [:"tlsv1.2"]])

    {:ok, socket} = connect(server, context.client)
    :ok = :ssl.send(socket, WireClient.startup_packet())
    until_ready(socket, <<>>)
    assert ask(socket, "select 1") == ["1"]
  end

  test "certificates of clients are verified, and required if the server says so", context do
    require_it = [verify: :verify_peer, fail_if_no_peer_cert: true]
    server = Servers.start!(ssl: context.server ++ require_it)
    {:ok, socket} = connect(server, context.client)
    :ok = :ssl.send(socket, WireClient.startup_packet())
    until_ready(socket, <<>>)
    assert ask(socket, "select 1") == ["1"]

    # With TLS 1.3 the client has ended its handshake before the server has seen that there is no certificate.
    nameless = Keyword.drop(context.client, [:cert, :key])

    with {:ok, socket} <- connect(server, nameless),
         :ok <- :ssl.send(socket, WireClient.startup_packet()),
         do: assert({:error, _alert} = :ssl.recv(socket, 0, 10_000))
  end

  @tag :tmp_dir
  test "rules tell encrypted connections from others", %{tmp_dir: directory} = context do
    rules = Path.join(directory, "rules")
    File.write!(rules, "hostssl all all all trust\n")

    for mode <- [:shared, :isolated] do
      server = Servers.start!(mode: mode, auth: rules, ssl: context.server)
      {:ok, socket} = connect(server, context.client)
      :ok = :ssl.send(socket, WireClient.startup_packet())
      until_ready(socket, <<>>)
      assert ask(socket, "select 1") == ["1"]
      plain = WireClient.connect!(server)
      :ok = :gen_tcp.send(plain, WireClient.startup_packet())
      assert {:ended, [{?E, fields}]} = WireClient.receive_answer(plain)
      assert WireClient.sqlstate(fields) == "28000"
    end
  end

  for mode <- [:shared, :isolated] do
    test "#{mode}: a client that begins with TLS has a session if it names the protocol",
         context do
      server = Servers.start!(mode: unquote(mode), ssl: context.server)

      for version <- [:"tlsv1.2", :"tlsv1.3"] do
        client = context.client ++ [versions: [version]]
        named = client ++ [alpn_advertised_protocols: ["h2", "postgresql"]]
        {:ok, socket} = connect_directly(server, named)
        :ok = :ssl.send(socket, WireClient.startup_packet())
        until_ready(socket, <<>>)
        assert ask(socket, "select 1") == ["1"]
        :ssl.close(socket)

        with {:ok, socket} <- connect_directly(server, client),
             :ok <- :ssl.send(socket, WireClient.startup_packet()),
             do: assert({:error, _closed} = :ssl.recv(socket, 0, 10_000))

        other = client ++ [alpn_advertised_protocols: ["h2"]]

        assert {:error, {:tls_alert, {:no_application_protocol, _}}} =
                 connect_directly(server, other)

        assert {:error, {:tls_alert, {:no_application_protocol, _}}} = connect(server, other)
      end

      assert :ok = Servers.await_connections(server, 0)
    end
  end

  test "a client that begins with TLS at a server without a certificate has no session",
       context do
    server = Servers.start!()
    named = context.client ++ [alpn_advertised_protocols: ["postgresql"]]
    assert {:error, _closed} = connect_directly(server, named)
  end

  test "clients that say nothing, or do not go on with TLS, make room for others", context do
    server = Servers.start!(ssl: context.server)
    beginnings = ["", WireClient.ssl_request(), <<0x16, 3, 1>>]

    crowd =
      for beginning <- Enum.flat_map(1..33, fn _ -> beginnings end) do
        socket = WireClient.connect!(server)
        :ok = :gen_tcp.send(socket, beginning)
        socket
      end

    [silent, asked, direct | _] = crowd
    assert {:ok, "S"} = :gen_tcp.recv(asked, 1, 10_000)
    assert {?E, fields} = until_crowded_out(silent, fn -> connect(server, context.client) end)
    assert WireClient.sqlstate(fields) == "53300"

    for socket <- [asked, direct],
        do: assert({:error, :closed} = :gen_tcp.recv(socket, 0, 10_000))

    assert {:error, :timeout} = :gen_tcp.recv(List.last(crowd), 2, 0)
    {:ok, socket} = connect(server, context.client)
    :ok = :ssl.send(socket, WireClient.startup_packet())
    until_ready(socket, <<>>)
    assert ask(socket, "select 1") == ["1"]
  end

  # The message that the socket gets while clients come, each of which gets in.
  defp until_crowded_out(socket, come) do
    {:ok, one} = come.()
    :ssl.close(one)

    case WireClient.receive_message(socket, 10) do
      {:ok, message} -> message
      {:error, :timeout} -> until_crowded_out(socket, come)
    end
  end

  test "the end of the program is told over TLS", context do
    Process.flag(:trap_exit, true)
    {:ok, server} = PgliteEx.start_link(ssl: context.server)
    {:ok, socket} = connect(server, context.client)
    :ok = :ssl.send(socket, WireClient.startup_packet())
    until_ready(socket, <<>>)
    PgliteEx.stop(server)
    assert {:ok, bytes} = :ssl.recv(socket, 0, 10_000)
    assert [{?E, fields}] = messages(bytes)
    assert WireClient.sqlstate(fields) == "57P01"
  end

  test "the private key is in no specification", context do
    spec = PgliteEx.child_spec(name: :unseen_key, ssl: context.server)
    refute inspect(spec, limit: :infinity) =~ "key: {"
    refute inspect(PgliteEx.Options.new!(ssl: context.server), limit: :infinity) =~ "key: {"
  end

  test "options without a certificate, and files that are not there, are refused" do
    for ssl <- [true, [], [keyfile: "server.key"], "server.pem"] do
      assert_raise ArgumentError, ~r/option ssl: it takes/, fn ->
        PgliteEx.Options.new!(ssl: ssl)
      end
    end

    assert_raise ArgumentError, ~r/there is no file .*nowhere.pem/, fn ->
      PgliteEx.Options.new!(ssl: [certfile: "/nowhere.pem"])
    end
  end
end
