defmodule PgliteEx.AuthenticationTest do
  @moduledoc "Passwords: who needs one, who has none to give, and where none is to be seen."
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias PgliteEx.{BadProgram, Connection, Parts, Password, Servers, WasmPort, WireClient}

  doctest Password

  @password "correct horse: battery/staple"
  @secured [auth: :scram_sha_256, password: @password]

  # What psql prints for a query at a URL, or its error.
  defp psql(url, sql) do
    arguments = ["-X", "-w", "-A", "-t", "-c", sql, url]

    case System.cmd("psql", arguments, stderr_to_stdout: true, env: [{"PGPASSWORD", nil}]) do
      {text, 0} -> {:ok, String.trim(text)}
      {text, _status} -> {:error, text}
    end
  end

  defp url(opts, password) do
    login = "#{opts[:username]}:#{URI.encode_www_form(password) |> String.replace("+", "%20")}"
    "postgresql://#{login}@#{opts[:hostname]}:#{opts[:port]}/#{opts[:database]}"
  end

  for mode <- [:shared, :isolated] do
    test "#{mode}: clients get in with the password that URL and connection options have, and with no other" do
      server = Servers.start!([mode: unquote(mode)] ++ @secured)
      assert {:ok, "postgres"} = psql(PgliteEx.url(server), "select current_user")
      opts = PgliteEx.connection_opts(server)
      assert opts[:password] == @password
      assert {:ok, "1"} = psql(url(opts, @password), "select 1")
      assert {:error, refused} = psql(url(opts, "wrong"), "select 1")
      assert refused =~ "password authentication failed for user"
      assert {:error, asked} = psql(String.replace(url(opts, ""), ":@", "@"), "select 1")
      assert asked =~ "no password supplied"
    end
  end

  test "a role that is made for the server has the password, and branches have that of their origin" do
    server = Servers.start!([username: "my_app", database: "my_app"] ++ @secured)
    assert {:ok, "my_app"} = psql(PgliteEx.url(server), "select current_user")
    assert {:error, _refused} = psql(url(PgliteEx.connection_opts(server), "wrong"), "select 1")
    branch = PgliteEx.branch!(server)
    assert {:ok, "my_app"} = psql(PgliteEx.url(branch), "select current_user")
    assert {:error, _refused} = psql(url(PgliteEx.connection_opts(branch), "wrong"), "select 1")
  end

  test "characters that SASLprep changes are those of the same password" do
    password = "ﬁsh\u00A0Å\u00ADx"
    server = Servers.start!(username: "my_app", auth: :scram_sha_256, password: password)
    assert {:ok, "my_app"} = psql(PgliteEx.url(server), "select current_user")

    assert {:ok, "my_app"} =
             psql(url(PgliteEx.connection_opts(server), "fish Åx"), "select current_user")
  end

  @tag :tmp_dir
  test "the directory of a server has the role and its password at the next start", %{
    tmp_dir: directory
  } do
    options = [username: "my_app", data: Path.join(directory, "data")]
    {:ok, server} = PgliteEx.start_link(options ++ @secured)
    assert {:ok, "my_app"} = psql(PgliteEx.url(server), "select current_user")
    PgliteEx.stop(server)
    server = Servers.start!(options ++ [auth: :scram_sha_256, password: "another"])
    assert {:ok, "my_app"} = psql(PgliteEx.url(server), "select current_user")
    assert {:error, _refused} = psql(url(PgliteEx.connection_opts(server), @password), "select 1")
  end

  @tag :tmp_dir
  test "a file of rules decides by address, database and role", %{tmp_dir: directory} do
    rules = Path.join(directory, "rules")
    File.write!(rules, "host all nobody all reject\nhost all all 127.0.0.0/8 scram-sha-256\n")
    server = Servers.start!(auth: rules, password: @password)
    assert {:ok, "1"} = psql(PgliteEx.url(server), "select 1")
    nobody = PgliteEx.connection_opts(server, username: "nobody")
    assert {:error, refused} = psql(url(nobody, @password), "select 1")
    assert refused =~ "pg_hba.conf rejects connection for host \"127.0.0.1\""
  end

  test "the function of after_start: gets the password, and its connections need it" do
    test = self()

    function = fn opts ->
      send(test, {:with, psql(url(opts, opts[:password]), "create table made (); select 1")})
      send(test, {:without, psql(url(opts, "wrong"), "select 1")})
    end

    server = Servers.start!([after_start: function] ++ @secured)
    assert_received {:with, {:ok, "CREATE TABLE\n1"}}
    assert_received {:without, {:error, _refused}}
    assert {:ok, "made"} = psql(PgliteEx.url(server), "select 'made'::regclass")
  end

  test "a template is prepared by connections that need the password, and its clones too" do
    server = Servers.start!([mode: :isolated] ++ @secured)

    prepare = fn opts ->
      assert {:error, _refused} = psql(url(opts, "wrong"), "select 1")
      assert {:ok, _done} = psql(url(opts, opts[:password]), "create table prepared ()")
    end

    assert {:ok, :built} = PgliteEx.prepare(server, "authentication_test", prepare)
    url = PgliteEx.url(server, "authentication_test")
    assert {:ok, "prepared"} = psql(url, "select 'prepared'::regclass")

    branch =
      PgliteEx.branch!(server, template: "authentication_test", database: "authentication_test")

    assert {:ok, "prepared"} = psql(PgliteEx.url(branch), "select 'prepared'::regclass")
    assert {:error, _refused} = psql(url(PgliteEx.connection_opts(branch), "wrong"), "select 1")
  end

  test "a connection without a socket is the application's own, unless it says otherwise" do
    server = Servers.start!(@secured)

    for {options, expected} <- [{[], 0}, {[trusted: true], 0}, {[trusted: false], 10}] do
      {:ok, connection} = PgliteEx.open(server, options)
      :ok = PgliteEx.send(connection, WireClient.startup_packet())

      assert_receive {:pglite_ex, ^connection,
                      {:data, <<?R, _size::32, answer::32, _rest::binary>>}},
                     10_000

      assert answer == expected
      PgliteEx.close(connection)
    end

    assert_raise ArgumentError, ~r/option trusted: "yes"/, fn ->
      PgliteEx.open(server, trusted: "yes")
    end
  end

  @tag :tmp_dir
  test "backups need no password", %{tmp_dir: directory} do
    server = Servers.start!(@secured)
    assert {:ok, %{files: _}} = PgliteEx.backup(server, Path.join(directory, "backup.tar"))
  end

  describe "the password is not shown" do
    test "in child specifications, states, and the list of processes" do
      spec = PgliteEx.child_spec([name: :unseen] ++ @secured)
      refute inspect(spec, limit: :infinity) =~ @password
      server = start_supervised!(Supervisor.child_spec(spec, id: :unseen))
      assert {:ok, "1"} = psql(PgliteEx.url(server), "select 1")

      {:ok, client} =
        :gen_tcp.connect({127, 0, 0, 1}, elem(PgliteEx.address(server), 1), [
          :binary,
          active: false
        ])

      registry = Parts.registry!(server)

      for pid <- processes(server), not is_struct(state(pid), Task) do
        refute inspect(state(pid), limit: :infinity, printable_limit: :infinity) =~ @password

        refute inspect(:sys.get_status(pid), limit: :infinity, printable_limit: :infinity) =~
                 @password
      end

      refute inspect(Registry.meta(registry, :options), limit: :infinity) =~ @password
      {:ok, %{"pid" => os_pid}} = WasmPort.hello(Parts.whereis(registry, WasmPort))

      for file <- ["cmdline", "environ"],
          do: refute(File.read!("/proc/#{os_pid}/#{file}") =~ @password)

      :gen_tcp.close(client)
    end

    # The processes of the server that are not tasks.
    defp processes(supervisor) do
      for {_id, pid, type, _modules} <- Supervisor.which_children(supervisor),
          is_pid(pid),
          reduce: [supervisor] do
        pids when type == :supervisor -> processes(pid) ++ pids
        pids -> [pid | pids]
      end
      |> Enum.reject(
        &(Process.info(&1, :dictionary)
          |> elem(1)
          |> Keyword.get(:"$initial_call")
          |> task?())
      )
    end

    defp task?({PgliteEx.SocketServer, _function, _arity}), do: true
    defp task?(_other), do: false

    defp state(pid), do: :sys.get_state(pid)

    @tag :tmp_dir
    test "in the reports of a program that ends, and of a function that fails", %{
      tmp_dir: directory
    } do
      Process.flag(:trap_exit, true)
      executable = BadProgram.write!(directory, "env >&2; echo \"$@\" >&2; exit 1")

      log =
        capture_log(fn ->
          assert {:error, reason} = PgliteEx.start_link([executable: executable] ++ @secured)
          refute Exception.format_exit(reason) =~ @password
          assert Exception.format_exit(reason) =~ "--password-user postgres"

          for function <- [
                &Keyword.fetch!(&1, :missing),
                {String, :no_such_function, []},
                fn opts -> raise inspect(opts) end,
                fn opts -> {:error, url(opts, @password)} end,
                fn opts ->
                  spawn_link(fn -> exit({:failed_with, opts}) end)
                  Process.sleep(:infinity)
                end
              ] do
            assert {:error, reason} = PgliteEx.start_link([after_start: function] ++ @secured)
            refute shown?(Exception.format_exit(reason))
          end
        end)

      refute shown?(log)
    end

    # As it is, or in a URL.
    defp shown?(text), do: text =~ @password or text =~ "correct%20horse"

    test "in the error of a template whose preparation fails" do
      server = Servers.start!([mode: :isolated] ++ @secured)

      for function <- [
            fn opts -> raise inspect(opts) end,
            fn opts ->
              spawn_link(fn -> exit({:failed_with, opts}) end)
              Process.sleep(:infinity)
            end
          ] do
        assert {:error, error} = PgliteEx.prepare(server, "authentication_test_fails", function)
        assert error.message =~ ~s(password: "…")
        refute shown?(error.message)
      end
    end

    test "in errors about options" do
      for password <- ["a\0battery", "a\nbattery", ["battery"], :battery] do
        error = assert_raise ArgumentError, fn -> PgliteEx.Options.new!(password: password) end
        refute error.message =~ "battery"
        refute inspect(PgliteEx.child_spec(password: password)) =~ "battery"
      end
    end
  end

  test "the file of the password is gone when the program runs" do
    server = Servers.start!(@secured)

    {:ok, %{"pid" => os_pid}} =
      server |> Parts.registry!() |> Parts.whereis(WasmPort) |> WasmPort.hello()

    {:ok, file} = File.read_link("/proc/#{os_pid}/fd/3")
    assert file =~ "pglite_ex-" and file =~ "(deleted)"
    refute file |> String.replace_suffix(" (deleted)", "") |> Path.dirname() |> File.exists?()
  end

  test "a variable and a function are asked when the password is needed" do
    System.put_env("PGLITE_EX_TEST_PASSWORD", @password)
    on_exit(fn -> System.delete_env("PGLITE_EX_TEST_PASSWORD") end)
    server = Servers.start!(auth: :scram_sha_256, password: {:system, "PGLITE_EX_TEST_PASSWORD"})
    assert {:ok, "1"} = psql(PgliteEx.url(server), "select 1")
    server = Servers.start!(auth: :scram_sha_256, password: fn -> @password end)
    assert {:ok, "1"} = psql(PgliteEx.url(server), "select 1")
    Process.flag(:trap_exit, true)
    missing = {:system, "PGLITE_EX_NO_SUCH_VARIABLE"}
    assert {:error, reason} = PgliteEx.start_link(auth: :scram_sha_256, password: missing)
    assert Exception.format_exit(reason) =~ "the variable PGLITE_EX_NO_SUCH_VARIABLE is not set"
  end

  test "an address that other machines reach needs auth: or consent" do
    for host <- ["0.0.0.0", {0, 0, 0, 0, 0, 0, 0, 0}, {192, 0, 2, 1}],
        auth <- [[], [auth: :trust]] do
      assert_raise ArgumentError,
                   ~r/give auth: and password:, or trust_everyone_who_can_connect: true/,
                   fn ->
                     PgliteEx.Options.new!([listen: {host, 0}] ++ auth)
                   end

      consent = [trust_everyone_who_can_connect: true]
      assert %{} = PgliteEx.Options.new!([listen: {host, 0}] ++ auth ++ consent)
      assert %{} = PgliteEx.Options.new!([listen: {host, 0}] ++ @secured)
    end

    for host <- [
          "127.0.0.1",
          {127, 1, 2, 3},
          {0, 0, 0, 0, 0, 0, 0, 1},
          {0, 0, 0, 0, 0, 0xFFFF, 0x7F00, 1}
        ],
        do: assert(%{} = PgliteEx.Options.new!(listen: {host, 0}))
  end

  test "passwords without a password are refused" do
    assert_raise ArgumentError, ~r/it takes a :password as well/, fn ->
      PgliteEx.Options.new!(auth: :scram_sha_256)
    end
  end

  test "clients that have not authenticated count as connections" do
    server = Servers.start!(@secured)
    client = WireClient.connect!(server)
    :ok = :gen_tcp.send(client, WireClient.startup_packet())
    assert {:ok, {?R, <<10::32, "SCRAM-SHA-256", 0, 0>>}} = WireClient.receive_message(client)

    assert [_one] =
             DynamicSupervisor.which_children(Parts.whereis(Parts.registry!(server), Connection))

    :gen_tcp.close(client)
    assert :ok = Servers.await_connections(server, 0)
  end
end
