defmodule PgliteExTest do
  use ExUnit.Case, async: true

  alias PgliteEx.{Servers, WireClient}

  doctest PgliteEx
  doctest PgliteEx.Template

  test "a server takes its place in a supervisor, and several do" do
    children = [
      {PgliteEx, name: :first_of_two, mode: :isolated},
      {PgliteEx, name: :second_of_two, mode: :isolated}
    ]

    start_supervised!(%{
      id: :both,
      start: {Supervisor, :start_link, [children, [strategy: :one_for_one]]}
    })

    assert PgliteEx.address(:first_of_two) != PgliteEx.address(:second_of_two)
  end

  test "connection options name what Postgrex needs, and take overrides" do
    server = Servers.start!(database: "app", username: "someone")
    {_host, port} = PgliteEx.address(server)

    options = PgliteEx.connection_opts(server, pool_size: 3)

    assert options |> Enum.filter(&elem(&1, 1)) |> Enum.sort() == [
             database: "app",
             hostname: "127.0.0.1",
             pglite_ex: server,
             pool_size: 3,
             port: port,
             username: "someone"
           ]

    # What a repo's configuration may have, and what would be preferred to the host and the port.
    for key <- [:url, :socket, :socket_dir, :endpoints],
        do: assert({:ok, nil} = Keyword.fetch(options, key))

    assert PgliteEx.url(server) == "postgresql://someone@127.0.0.1:#{port}/app"
    assert PgliteEx.url(server, "a b") == "postgresql://someone@127.0.0.1:#{port}/a%20b"
  end

  test "an isolated server asks for a pool of one" do
    server = Servers.start!(mode: :isolated)
    assert PgliteEx.connection_opts(server)[:pool_size] == 1
    assert PgliteEx.connection_opts(server, pool_size: 2)[:pool_size] == 2
  end

  test "a unix socket is given as socket, and in the URL as libpq wants it" do
    directory = Path.join(System.tmp_dir!(), "pglite_ex-#{System.unique_integer([:positive])}")
    on_exit(fn -> File.rm_rf!(directory) end)
    server = Servers.start!(listen: {:local, directory})
    assert PgliteEx.connection_opts(server)[:socket] == Path.join(directory, ".s.PGSQL.5432")
    assert PgliteEx.url(server) =~ "postgresql://postgres@/postgres?host=%2F"
  end

  test "a repo's configuration leads to the server that it names, or to the one it was started with" do
    server = Servers.start!(name: :server_of_a_repo, database: "app")
    configured = [url: "postgresql://elsewhere/other", database: "other", timeout: 1]
    config = PgliteEx.repo_config(:server_of_a_repo, :runtime, configured)
    assert config[:url] == nil
    assert config[:database] == "app"
    assert config[:timeout] == 1

    # A second repo on the same server.
    another = PgliteEx.repo_config(:server_of_a_repo, :runtime, configured, database: "another")
    assert Map.new(another) == Map.new(config) |> Map.put(:database, "another")

    {:ok, other} = PgliteEx.start_link(mode: :isolated)
    started = Keyword.merge(configured, PgliteEx.connection_opts(other))
    assert PgliteEx.repo_config(:server_of_a_repo, :supervisor, started) == started
    PgliteEx.stop(other)
    assert PgliteEx.url(server) =~ "/app"
  end

  test "a repo whose server does not run is not started, and leads nowhere" do
    assert {:shutdown, sentence} = catch_exit(PgliteEx.repo_config(:no_server, :supervisor, []))
    assert sentence =~ "the server :no_server does not run"

    config =
      PgliteEx.repo_config(:no_server, :runtime, url: "postgresql://elsewhere/other", priv: "p")

    assert %{url: nil, priv: "p", database: database} = Map.new(config)
    # As Ecto's tasks make SQL of it.
    error = catch_error("CREATE DATABASE #{database}")
    assert Exception.message(error) == sentence
    # Mix prints the message, and ends with this status.
    assert error.mix == 1
  end

  test "stats count the connections and the memory" do
    server = Servers.start!(mode: :isolated)
    assert {:ok, %{"connections" => 0}} = PgliteEx.stats(server)
    {_client, _key} = WireClient.start_session!(server)
    assert {:ok, %{"connections" => 1, "memory" => memory}} = PgliteEx.stats(server)
    assert is_integer(memory)
  end

  test "a verb that the program does not know is answered with an error" do
    server = Servers.start!()
    assert {:error, %PgliteEx.Error{code: "0A000"}} = PgliteEx.request(server, "dance")
  end

  test "a request that no frame can carry is refused, and the server goes on" do
    server = Servers.start!()

    for {verb, options} <- [
          {"drop_template", [{"name", "a\0\0b"}]},
          {"drop_template", [{"name", <<255>>}]},
          {"drop_template", [{"", "a"}]},
          {"drop_template", [{"name", nil}]},
          {"drop\0template", []}
        ] do
      assert_raise ArgumentError, fn -> PgliteEx.request(server, verb, options) end
    end

    assert {:ok, %{"connections" => 0}} = PgliteEx.stats(server)
  end

  test "many requests at once get their own replies" do
    server = Servers.start!()

    1..100
    |> Enum.map(fn n ->
      verb = if rem(n, 2) == 0, do: "stats", else: "verb #{n}"
      Task.async(fn -> {n, PgliteEx.request(server, verb)} end)
    end)
    |> Task.await_many()
    |> Enum.each(fn
      {n, {:ok, _stats}} -> assert rem(n, 2) == 0
      {n, {:error, error}} -> assert error.message =~ "verb #{n}"
    end)
  end
end
