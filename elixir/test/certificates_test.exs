defmodule PgliteEx.CertificatesTest do
  @moduledoc "Certificates of a server that are renewed and bound to passwords, and those that let clients in."
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias PgliteEx.{Authority, Identity, Servers, StartupTime, Template, WireClient}

  doctest StartupTime

  @moduletag :tmp_dir
  @secured [auth: :scram_sha_256, password: "secret"]

  # The files of a server and of a client of one authority, as options of `:ssl` and by their paths.
  defp issue(directory) do
    made = Authority.make()
    File.mkdir_p!(directory)

    for side <- [:server, :client] do
      config = made[:"#{side}_config"]
      {type, key} = config[:key]
      write(directory, "#{side}.pem", [{:Certificate, config[:cert], :not_encrypted}])
      write(directory, "#{side}.key", [{type, key, :not_encrypted}])
      File.chmod!(Path.join(directory, "#{side}.key"), 0o600)
      authorities = for der <- config[:cacerts], do: {:Certificate, der, :not_encrypted}
      write(directory, "#{side}-ca.pem", authorities)
    end

    made
  end

  defp write(directory, name, entries),
    do: File.write!(Path.join(directory, name), :public_key.pem_encode(entries))

  defp files(directory) do
    [
      certfile: Path.join(directory, "server.pem"),
      keyfile: Path.join(directory, "server.key"),
      cacertfile: Path.join(directory, "server-ca.pem")
    ]
  end

  # A client that has asked for TLS, verifies the server and has sent its startup packet.
  defp connect(server, options, user \\ "postgres", database \\ "postgres") do
    socket = WireClient.connect!(server)
    :ok = :gen_tcp.send(socket, WireClient.ssl_request())
    {:ok, "S"} = :gen_tcp.recv(socket, 1, 10_000)

    verified = [
      verify: :verify_peer,
      server_name_indication: 'localhost',
      active: false,
      versions: [:"tlsv1.2"]
    ]

    with {:ok, socket} <- :ssl.connect(socket, Keyword.merge(verified, options), 10_000) do
      :ok = :ssl.send(socket, WireClient.startup_packet(user: user, database: database))
      {:ok, socket}
    end
  end

  defp connect!(server, options, user \\ "postgres", database \\ "postgres") do
    {:ok, socket} = connect(server, options, user, database)
    socket
  end

  defp next(socket) do
    {:ok, <<type, size::32>>} = recv(socket, 5)
    if size == 4, do: {type, ""}, else: {type, elem(recv(socket, size - 4), 1)}
  end

  defp recv(socket, size) do
    with {:ok, bytes} <- :ssl.recv(socket, size, 30_000), do: {:ok, IO.iodata_to_binary(bytes)}
  end

  defp until(socket, type) do
    case next(socket) do
      {^type, body} -> body
      {?E, fields} -> flunk("an error: #{inspect(fields)}")
      _another -> until(socket, type)
    end
  end

  defp select_1(socket), do: select(socket, "select 1")

  # The one value that a query returns.
  defp select(socket, query) do
    :ok = :ssl.send(socket, WireClient.query_message(query))
    <<1::16, size::32, value::binary-size(size)>> = until(socket, ?D)
    until(socket, ?Z)
    value
  end

  defp psql(server, words) do
    {host, port} = PgliteEx.address(server)
    address = host |> :inet.ntoa() |> to_string()

    target =
      "host=localhost hostaddr=#{address} port=#{port} user=postgres dbname=postgres #{words}"

    System.cmd("psql", ["-X", "-w", "-At", "-c", "select 1", target], stderr_to_stdout: true)
  end

  test "the name that a client asks for chooses the certificate", %{tmp_dir: directory} do
    %{client_config: client} = issue(directory)
    other = Path.join(directory, "other")
    issue(other)
    hosts = [{'other.example', Keyword.take(files(other), [:certfile, :keyfile])}]
    server = Servers.start!(ssl: files(directory) ++ [sni_hosts: hosts])

    shown = fn name ->
      named = [server_name_indication: name, verify: :verify_none]
      socket = connect!(server, Keyword.merge(client, named))
      until(socket, ?Z)
      {:ok, certificate} = :ssl.peercert(socket)
      certificate
    end

    stored = fn directory ->
      [{:Certificate, certificate, _}] =
        :public_key.pem_decode(File.read!(files(directory)[:certfile]))

      certificate
    end

    assert shown.('localhost') == stored.(directory)
    assert shown.('other.example') == stored.(other)
    issue(other)
    assert :ok = PgliteEx.reload(server)
    assert shown.('other.example') == stored.(other)
  end

  test "a reload shows new clients the new certificate, and sessions go on", %{tmp_dir: directory} do
    %{client_config: old} = issue(directory)
    server = Servers.start!(ssl: files(directory))
    session = connect!(server, old)
    until(session, ?Z)
    {:ok, before} = :ssl.peercert(session)

    %{client_config: new} = issue(directory)
    # Nothing has been asked to read the files.
    until(connect!(server, old), ?Z)
    assert :ok = PgliteEx.reload(server)
    renewed = connect!(server, new)
    until(renewed, ?Z)
    {:ok, renewed_certificate} = :ssl.peercert(renewed)
    assert renewed_certificate != before
    assert {:error, {:tls_alert, _unknown_authority}} = connect(server, old)
    assert select_1(session) == "1"
    assert select_1(renewed) == "1"
  end

  test "branches show the certificate of their server, also after a reload", %{tmp_dir: directory} do
    issue(directory)
    server = Servers.start!(ssl: files(directory))
    branch = PgliteEx.branch!(server)
    %{client_config: new} = issue(directory)
    assert :ok = PgliteEx.reload(branch)
    assert branch |> connect!(new) |> select_1_of_new() == "1"
  end

  defp select_1_of_new(socket) do
    until(socket, ?Z)
    select_1(socket)
  end

  test "files that cannot be used leave those from before in use, and the log says which and why",
       %{tmp_dir: directory} do
    %{client_config: client} = issue(directory)
    server = Servers.start!(ssl: files(directory))
    [certfile: certificate, keyfile: key, cacertfile: authorities] = files(directory)
    another = Path.join(directory, "another")
    issue(another)

    for {path, content, reason} <- [
          {certificate, "nonsense", "#{certificate} has no certificate"},
          {certificate, File.read!(key), "#{certificate} has no certificate"},
          {certificate, broken(certificate), "a certificate in #{certificate} cannot be read"},
          {key, File.read!(certificate), "#{key} has no private key"},
          {key, File.read!(Path.join(another, "server.key")),
           "the private key in #{key} is not that of the certificate in #{certificate}"},
          {authorities, "", "#{authorities} has no certificate"},
          {authorities, nil, "#{authorities} cannot be read: no such file or directory"}
        ] do
      kept = File.read!(path)
      if content, do: File.write!(path, content), else: File.rm!(path)

      log =
        capture_log(fn ->
          assert {:error, %{code: :unusable_certificate, message: message}} =
                   PgliteEx.reload(server)

          assert message =~ reason
        end)

      assert log =~ "TLS goes on with the files from before: #{reason}"
      assert server |> connect!(client) |> select_1_of_new() == "1"
      File.write!(path, kept)
    end

    assert :ok = PgliteEx.reload(server)
  end

  # A certificate file with one byte less in it.
  defp broken(path) do
    [{:Certificate, der, :not_encrypted} | _] = :public_key.pem_decode(File.read!(path))
    short = binary_part(der, 0, byte_size(der) - 1)
    :public_key.pem_encode([{:Certificate, short, :not_encrypted}])
  end

  test "a server does not start with files that cannot be used", %{tmp_dir: directory} do
    Process.flag(:trap_exit, true)
    issue(directory)
    [certfile: certificate, keyfile: _, cacertfile: _] = files = files(directory)
    File.write!(certificate, "nonsense")
    assert {:error, error} = PgliteEx.start_link(ssl: files)
    assert %PgliteEx.Error{code: :unusable_certificate, message: message} = error
    assert message =~ certificate
  end

  test "a private key that others can read is refused at the start and at a reload", %{
    tmp_dir: directory
  } do
    Process.flag(:trap_exit, true)
    %{client_config: client} = issue(directory)
    [certfile: certificate, keyfile: key, cacertfile: _] = files(directory)
    hosts = [{'other.example', [certfile: certificate, keyfile: key]}]
    # Where nobody is `root`, tests run as the owner of the file.
    %File.Stat{uid: owner} = File.stat!(key)
    group = if owner == 0, do: [], else: [{0o640, "0640"}]

    for {mode, shown} <- [{0o644, "0644"}, {0o604, "0604"}, {0o620, "0620"} | group],
        options <- [
          [certfile: certificate, keyfile: key],
          [certs_keys: [%{certfile: certificate, keyfile: key}]],
          [sni_hosts: hosts]
        ] do
      File.chmod!(key, mode)
      assert {:error, error} = PgliteEx.start_link(ssl: options)
      assert %PgliteEx.Error{code: :unusable_certificate, message: message} = error

      assert message ==
               "others can read the private key in #{key} (mode #{shown}): chmod 600 #{key}, or 640 if it is root's"
    end

    # A file with both is one of a key.
    both = Path.join(directory, "both.pem")
    File.write!(both, File.read!(certificate) <> File.read!(key))
    File.chmod!(both, 0o644)

    assert {:error, %PgliteEx.Error{message: message}} =
             PgliteEx.start_link(ssl: [certfile: both])

    assert message =~ "others can read the private key in #{both}"
    File.chmod!(both, 0o600)
    assert {:ok, _identity} = Identity.read(certfile: both)

    for mode <- [0o600, 0o400, 0o700] ++ if(owner == 0, do: [0o640], else: []) do
      File.chmod!(key, mode)
      assert {:ok, _identity} = Identity.read(files(directory))
      assert {:ok, _identity} = Identity.read(sni_hosts: hosts)
    end

    # The certificate of a host that has the server's key; everybody may read a certificate.
    public = Path.join(directory, "public.pem")
    File.cp!(certificate, public)
    File.chmod!(public, 0o644)
    own = [certfile: certificate, keyfile: key]
    hosts = [{'other.example', [certfile: public]}]
    assert {:ok, _identity} = Identity.read(own ++ [sni_hosts: hosts])

    # Nor is one without a key told to have one.
    assert {:error, %PgliteEx.Error{message: message}} = Identity.read(certfile: public)
    assert message =~ "no private key"

    server = Servers.start!(ssl: files(directory))
    File.chmod!(key, 0o644)

    log =
      capture_log(fn ->
        assert {:error, %{code: :unusable_certificate, message: message}} =
                 PgliteEx.reload(server)

        assert message =~ "others can read the private key in #{key} (mode 0644)"
      end)

    assert log =~
             "TLS goes on with the files from before: others can read the private key in #{key}"

    assert server |> connect!(client) |> select_1_of_new() == "1"
    File.chmod!(key, 0o600)
    assert :ok = PgliteEx.reload(server)
  end

  test "keys of RSA, of elliptic and Edwards curves, and encrypted ones are read", %{
    tmp_dir: directory
  } do
    for {name, words} <- [
          {"rsa", ["-newkey", "rsa:2048", "-nodes"]},
          {"ec", ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes"]},
          {"ed25519", ["-newkey", "ed25519", "-nodes"]},
          {"encrypted", ["-newkey", "rsa:2048", "-passout", "pass:word"]}
        ] do
      [key, certificate] = for kind <- ["key", "pem"], do: Path.join(directory, "#{name}.#{kind}")
      into = ["-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-batch"]

      {_output, 0} =
        System.cmd("openssl", ["req", "-x509"] ++ words ++ into, stderr_to_stdout: true)

      given = [certfile: certificate, keyfile: key, password: "word"]
      assert {:ok, identity} = Identity.read(given)
      assert [{:Certificate, der, _}] = :public_key.pem_decode(File.read!(certificate))
      assert identity.certificate == der
      assert {:error, _} = Identity.read([cacertfile: "/nowhere"] ++ given)

      if name == "encrypted" do
        assert {:error, error} = Identity.read(Keyword.put(given, :password, "wrong"))
        assert error.message =~ "#{key} cannot be read with the option password:"
      end
    end
  end

  test "a certificate lets in the role that it names, and nobody else", %{tmp_dir: directory} do
    %{client_config: client} = issue(directory)
    %{client_config: stranger} = issue(Path.join(directory, "strangers"))
    role = common_name(client[:cert])
    rules = Path.join(directory, "rules")
    File.write!(rules, "hostssl all all all cert\n")
    # An isolated cluster has the roles of its template.
    template = "pglite_ex_test_certificates_#{System.pid()}"
    unprotected = Servers.start!(mode: :isolated)

    create_role = fn connection_opts ->
      socket = WireClient.start_session_with!(connection_opts)
      {:ok, []} = WireClient.query(socket, ~s(create role "#{role}" login))
      :gen_tcp.close(socket)
    end

    assert {:ok, :built} = Template.prepare(unprotected, template, create_role)

    for mode <- [:shared, :isolated] do
      server =
        Servers.start!(
          [mode: mode, auth: rules, ssl: files(directory) ++ [verify: :verify_peer]] ++
            if(mode == :shared, do: [username: role], else: [])
        )

      database = if mode == :isolated, do: template, else: "postgres"
      socket = connect!(server, client, role, database)
      until(socket, ?Z)
      assert select(socket, "select current_user") == role

      assert {"28000", text} = refusal(connect!(server, client, "somebody_else", database))
      assert text =~ "certificate authentication failed"

      assert {"28000", text} =
               refusal(connect!(server, Keyword.drop(client, [:cert, :key]), role, database))

      assert text =~ "certificate"

      # One of another authority ends the handshake, or the connection after it.
      own = Keyword.take(stranger, [:cert, :key])

      # The alert may be lost with what the server has not read.
      assert {:error, reason} = connect(server, Keyword.merge(client, own), role)

      assert reason in [:closed, :econnreset] or
               match?({:tls_alert, {:unknown_ca, _text}}, reason)
    end

    assert :ok = Template.drop(unprotected, template)
  end

  defp refusal(socket) do
    case next(socket) do
      {?E, fields} -> {WireClient.sqlstate(fields), fields}
      # That the rule is fulfilled, but for the certificate.
      {?R, <<0::32>>} -> refusal(socket)
    end
  end

  defp common_name(der) do
    {:rdnSequence, names} = der |> :public_key.pkix_decode_cert(:otp) |> elem(1) |> elem(6)

    Enum.find_value(List.flatten(names), fn
      {:AttributeTypeAndValue, {2, 5, 4, 3}, {_kind, name}} -> to_string(name)
      _another -> nil
    end)
  end

  test "psql binds its password to the certificate, before and after a reload", %{
    tmp_dir: directory
  } do
    issue(directory)

    bound =
      "sslmode=verify-full sslrootcert=#{directory}/client-ca.pem channel_binding=require password="

    for mode <- [:shared, :isolated] do
      server = Servers.start!([mode: mode, ssl: files(directory)] ++ @secured)
      assert {"1\n", 0} = psql(server, bound <> "secret")
      issue(directory)
      assert :ok = PgliteEx.reload(server)
      assert {"1\n", 0} = psql(server, bound <> "secret")
      assert {refused, 2} = psql(server, bound <> "wrong")
      assert refused =~ "password authentication failed"
      assert {"1\n", 0} = psql(server, "sslmode=disable password=secret")
    end
  end

  test "a password that is bound to another certificate is refused", %{tmp_dir: directory} do
    %{client_config: client} = issue(directory)
    [{:Certificate, own, _}] = :public_key.pem_decode(File.read!(files(directory)[:certfile]))

    for mode <- [:shared, :isolated] do
      server = Servers.start!([mode: mode, ssl: files(directory)] ++ @secured)

      # The proof is wrong in both, and looked at after the binding.
      assert {"28P01", _} = prove(server, client, :crypto.hash(:sha256, own))
      assert {"28000", text} = prove(server, client, :crypto.hash(:sha256, client[:cert]))
      assert text =~ "SCRAM channel binding check failed"
    end
  end

  # Says to be bound to a certificate with this digest.
  defp prove(server, client, digest) do
    socket = connect!(server, client)
    {?R, <<10::32, offered::binary>>} = next(socket)
    assert offered == "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
    first = "p=tls-server-end-point,,n=,r=abcdefghijklmnop"
    send_p(socket, ["SCRAM-SHA-256-PLUS", 0, <<byte_size(first)::32>>, first])
    {?R, <<11::32, server_first::binary>>} = next(socket)
    ["r=" <> nonce | _] = String.split(server_first, ",")
    binding = Base.encode64("p=tls-server-end-point,," <> digest)
    send_p(socket, ["c=", binding, ",r=", nonce, ",p=", Base.encode64(<<0::256>>)])
    refusal(socket)
  end

  defp send_p(socket, body),
    do: :ok = :ssl.send(socket, [<<?p, IO.iodata_length(body) + 4::32>>, body])

  @tag timeout: 300_000
  test "authentication_timeout ends clients that say nothing, or do not go on with TLS", %{
    tmp_dir: directory
  } do
    issue(directory)

    for mode <- [:shared, :isolated],
        beginning <- ["", WireClient.ssl_request(), <<0x16, 3, 1>>] do
      options = [mode: mode, settings: [authentication_timeout: "1s"]]

      for ssl <- [[], [ssl: files(directory)]] do
        server = Servers.start!(options ++ ssl)
        socket = WireClient.connect!(server)
        :ok = :gen_tcp.send(socket, beginning)
        # Without the setting it would be a minute.
        assert :closed = end_of(socket)
        assert :ok = Servers.await_connections(server, 0)
      end
    end
  end

  defp end_of(socket) do
    case :gen_tcp.recv(socket, 0, 30_000) do
      {:ok, _answer_to_the_request} -> end_of(socket)
      {:error, reason} when reason in [:closed, :econnreset] -> :closed
      {:error, :timeout} -> :timeout
    end
  end
end
