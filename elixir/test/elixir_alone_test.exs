defmodule PgliteEx.ElixirAloneTest do
  @moduledoc "A machine with Elixir, and with neither Rust nor Node.js nor PostgreSQL: the program comes from an archive."
  use ExUnit.Case, async: true

  alias PgliteEx.{Archive, Authority, ElixirAlone, FileServer}

  @moduletag :tmp_dir
  @moduletag timeout: 300_000

  # Prints whether a server of the project lets clients in.
  @ready """
  {:ok, server} = PgliteEx.start_link(database: "my_app")
  {:ok, stats} = PgliteEx.stats(server)
  IO.inspect(stats["ready"], label: "ready")
  """

  setup %{tmp_dir: directory} do
    library = ElixirAlone.library!(Path.join(directory, "pglite_ex"))
    tools = ElixirAlone.tools!(Path.join(directory, "tools"))
    dependencies = ~S({:pglite_ex, path: "../pglite_ex"})
    project = ElixirAlone.new_project!(directory, tools, dependencies)
    %{library: library, tools: tools, project: project}
  end

  defp run(context, command, arguments, environment) do
    System.cmd(command, arguments,
      cd: context.project,
      stderr_to_stdout: true,
      env:
        [
          {"PATH", context.tools},
          {"PWD", context.project},
          {"MIX_ENV", "dev"},
          {"PGLITE_PORT", nil},
          {"PGLITE_DIR", nil}
        ] ++ environment
    )
  end

  test "a project has a database with vectors, a dump of it, and runs the dump", context do
    archive = ElixirAlone.archive!(context.tmp_dir)
    # As in the package for Hex, which brings the list of the archives' checksums.
    File.rename!(archive <> ".sha256", Path.join(context.library, "archives.sha256"))
    # Nothing says where a program is.
    assert {output, 0} = run(context, "mix", ["compile"], [])
    assert output =~ "name an archive with the program in PGLITE_EX_ARCHIVE"

    # A path is relative to where Mix was started.
    relative = "../" <> Path.basename(archive)
    assert {output, 0} = run(context, "mix", ["compile"], [{"PGLITE_EX_ARCHIVE", relative}])
    assert output =~ "Unpacking pglite-port from #{archive}"
    assert output =~ ~r"pglite-port 0.1.0.* is in .*/priv/pglite-port"

    # It is there now, and unpacked no more.
    assert {"", 0} = run(context, "mix", ["compile"], [{"PGLITE_EX_ARCHIVE", relative}])

    script = """
    {:ok, server} = PgliteEx.start_link(database: "my_app")
    url = PgliteEx.url(server)
    bin = Path.join(:code.priv_dir(:pglite_ex), "bin")
    run = fn tool, arguments ->
      {output, 0} = System.cmd(Path.join(bin, tool), arguments, stderr_to_stdout: true)
      IO.puts(output)
    end
    run.("psql", [url, "-c", "create extension vector; create table items (v vector(2)); insert into items values ('[1,2]')"])
    run.("pg_dump", [url, "--file", "structure.sql"])
    run.("psql", [url, "-c", "drop table items; drop extension vector"])
    run.("psql", ["-X", "-v", "ON_ERROR_STOP=1", "-f", "structure.sql", url])
    run.("psql", [url, "-c", "select v <-> '[4,6]' as distance from items"])
    """

    File.write!(Path.join(context.project, "vectors.exs"), script)
    assert {output, 0} = run(context, "mix", ["run", "vectors.exs"], [])
    assert output =~ ~r/^5$/m
    dump = File.read!(Path.join(context.project, "structure.sql"))
    assert dump =~ "CREATE TABLE public.items"
  end

  test "the configuration of a project names the archive, for its version and machine", context do
    archive = ElixirAlone.archive!(context.tmp_dir)
    pattern = Path.join(context.tmp_dir, "pglite-port-{version}-{target}.tar.gz")
    named = Archive.fill_in(pattern)

    unless named == archive, do: File.rename!(archive, named)
    sha256 = ElixirAlone.sha256(named)
    File.rm!(archive <> ".sha256")
    configure!(context, archive: pattern, archive_sha256: String.duplicate("0", 64))
    assert {output, 1} = run(context, "mix", ["compile"], [])
    assert output =~ "PgliteEx has no program: #{named} is not the archive that was expected"

    configure!(context, archive: pattern, archive_sha256: sha256)
    assert {output, 0} = run(context, "mix", ["compile"], [])
    assert output =~ "Unpacking pglite-port from #{named}"
    assert output =~ ~r"pglite-port 0.1.0.* is in .*/priv/pglite-port"
    assert {"", 0} = run(context, "mix", ["compile"], [])
    assert {output, 0} = run(context, "mix", ["run", "-e", @ready], [])
    assert output =~ "ready: 1"
  end

  for {what, make} <- [
        {"is a file", quote(do: &File.write!(&1, ""))},
        # The kernel makes no directory there, not even for root.
        {"cannot be written to", quote(do: &File.ln_s!("/sys", &1))}
      ] do
    test "where priv of the library #{what}, one sentence says so, and a program elsewhere does",
         context do
      priv = Path.join(context.library, "priv")
      File.rmdir!(priv)
      unquote(make).(priv)
      archive = ElixirAlone.archive!(context.tmp_dir)
      configure!(context, archive: archive)
      assert {output, 1} = run(context, "mix", ["compile"], [])
      assert output =~ ~r"PgliteEx has no program: nothing can be unpacked into .*/priv: "
      assert output =~ "unpack the archive elsewhere and name the program in it with PGLITE_PORT"
      refute output =~ "** (File"

      elsewhere = Path.join(context.tmp_dir, "elsewhere")
      :ok = :erl_tar.extract(to_charlist(archive), [:compressed, cwd: to_charlist(elsewhere)])
      [program] = Path.wildcard(Path.join(elsewhere, "*/pglite-port"))
      environment = [{"PGLITE_PORT", program}]
      assert {_output, 0} = run(context, "mix", ["compile"], environment)
      assert {output, 0} = run(context, "mix", ["run", "-e", @ready], environment)
      assert output =~ "ready: 1"
    end
  end

  defp configure!(context, config) do
    path = Path.join(context.project, "config/config.exs")
    File.mkdir_p!(Path.dirname(path))
    File.write!(path, "import Config\nconfig :pglite_ex, #{inspect(config)}\n")
  end

  test "what is wrong with an archive fails the compilation, with one sentence", context do
    archive = Path.join(context.tmp_dir, "a.tar.gz")
    File.write!(archive, "damaged")
    wrong = String.duplicate("0", 64)
    environment = [{"PGLITE_EX_ARCHIVE", archive}, {"PGLITE_EX_ARCHIVE_SHA256", wrong}]
    assert {output, 1} = run(context, "mix", ["compile"], environment)
    assert output =~ "PgliteEx has no program: #{archive} is not the archive that was expected"
    refute output =~ "** (MatchError)"
  end

  test "an archive comes from a web server whose certificate is trusted", context do
    %{server_config: server} = Authority.make()
    archive = ElixirAlone.archive!(context.tmp_dir)
    name = Path.basename(archive)
    bytes = File.read!(archive)
    answers = %{("/" <> name) => bytes, "/#{name}.sha256" => ElixirAlone.sha256(archive)}
    url = FileServer.start!(answers, tls: Keyword.take(server, [:cert, :key, :cacerts]))
    plain = FileServer.start!(%{"/x" => 200})
    downgrade = FileServer.start!(%{"/x.sha256" => {:redirect, plain <> "/x"}}, tls: server)
    trusted = authority!(context.tmp_dir, server[:cacerts])

    install = fn url, environment ->
      run(context, "mix", ["pglite_ex.install", "--archive", url], environment)
    end

    assert {output, 1} = install.("#{url}/#{name}", [])
    assert output =~ "#{url}/#{name}.sha256 cannot be reached: TLS: "

    assert {output, 1} = install.("#{downgrade}/x", [{"SSL_CERT_FILE", trusted}])
    assert output =~ "leads to #{plain}/x, which is not encrypted"

    assert {output, 0} = install.("#{url}/#{name}", [{"SSL_CERT_FILE", trusted}])
    assert output =~ ~r"pglite-port 0.1.0.* is in "
  end

  defp authority!(directory, certificates) do
    path = Path.join(directory, "authority.pem")
    entries = for certificate <- certificates, do: {:Certificate, certificate, :not_encrypted}
    File.write!(path, :public_key.pem_encode(entries))
    path
  end
end
