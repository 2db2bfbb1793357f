Code.require_file("../../test/support/authority.ex", __DIR__)

defmodule Integration.SslTest do
  @moduledoc "Postgrex over TLS, with a certificate authority that is made here: what libpq calls `verify-full`."
  use ExUnit.Case, async: true

  @moduletag :tmp_dir

  setup_all do
    %{server_config: server, client_config: client} = PgliteEx.Authority.make()
    %{server: server, authorities: client[:cacerts]}
  end

  # A server that only lets encrypted connections with a password in.
  defp start_server!(mode, context) do
    rules = Path.join(context.tmp_dir, "rules")
    File.write!(rules, "hostssl all all all scram-sha-256\n")
    options = [mode: mode, ssl: context.server, auth: rules, password: "a secret"]
    start_supervised!({PgliteEx, options})
  end

  # The options of one connection to `host`, which is tried once.
  defp options(server, host, ssl) do
    PgliteEx.connection_opts(server, hostname: host, ssl: ssl, pool_size: 1, auto_reconnect: false)
  end

  for mode <- [:shared, :isolated] do
    @tag mode: mode
    test "#{mode}: Postgrex verifies the server, and authenticates itself with a password",
         context do
      server = start_server!(unquote(mode), context)

      for version <- [:"tlsv1.2", :"tlsv1.3"] do
        ssl = [verify: :verify_peer, cacerts: context.authorities, versions: [version]]
        {:ok, conn} = Postgrex.start_link(options(server, "localhost", ssl))
        assert %{rows: [[1]]} = Postgrex.query!(conn, "select 1", [])
        large = String.duplicate("x", 1_000_000)
        assert %{rows: [[^large]]} = Postgrex.query!(conn, "select $1::text", [large])
        GenServer.stop(conn)
      end
    end

    @tag mode: mode
    test "#{mode}: a server that is another one, or a connection without TLS, has no session",
         context do
      Process.flag(:trap_exit, true)
      server = start_server!(unquote(mode), context)
      %{client_config: stranger} = PgliteEx.Authority.make()
      trusted = [verify: :verify_peer, cacerts: context.authorities]

      for {host, ssl, reason} <- [
            {"localhost", [verify: :verify_peer, cacerts: stranger[:cacerts]], ~r/unknown_ca/},
            {"127.0.0.1", trusted, ~r/hostname_check_failed/},
            {"localhost", false, ~r/no encryption/}
          ] do
        assert {:error, error} = Postgrex.Notifications.start_link(options(server, host, ssl))
        assert Exception.message(error) =~ reason
      end

      {:ok, listener} = Postgrex.Notifications.start_link(options(server, "localhost", trusted))
      assert {:ok, _reference} = Postgrex.Notifications.listen(listener, "news")
    end
  end
end
