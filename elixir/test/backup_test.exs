defmodule PgliteEx.BackupTest do
  @moduledoc "Backups of running servers, and servers on restored ones."
  use ExUnit.Case, async: true

  alias PgliteEx.{BadProgram, Error, Servers, WireClient}

  @moduletag :tmp_dir

  defp values(server, sql), do: WireClient.rows!(server, sql, database: "app", user: "someone")

  describe "a backup" do
    @describetag :backup

    for {kind, options} <- [{"in memory", []}, {"in a directory", [data: "data"]}] do
      test "of a cluster #{kind} is restored with what was committed", %{tmp_dir: directory} do
        path = &Path.join(directory, &1)
        kept = for {:data, name} <- unquote(options), do: {:data, path.(name)}
        names = [database: "app", username: "someone"]
        server = Servers.start!(kept ++ names)
        values(server, "create table notes as select i from generate_series(1, 1000) i")

        assert {:ok, %{files: files, bytes: bytes}} =
                 PgliteEx.backup(server, path.("backup.tar.gz"))

        assert files > 900 and bytes > 20_000_000
        values(server, "drop table notes")

        assert :ok = PgliteEx.restore(path.("backup.tar.gz"), path.("restored"))
        restored = Servers.start!([data: path.("restored")] ++ names)
        assert [["1000"]] = values(restored, "select count(*) from notes")
      end
    end

    test "can be made before migrations", %{tmp_dir: directory} do
      {test, path} = {self(), Path.join(directory, "before.tar")}

      Servers.start!(
        name: __MODULE__,
        after_start: fn _opts -> send(test, PgliteEx.backup(__MODULE__, path)) end
      )

      assert_received {:ok, %{files: _files}}
      assert File.exists?(path)
    end

    test "that cannot be written is an error with the reason", %{tmp_dir: directory} do
      server = Servers.start!()
      path = Path.join([directory, "nowhere", "backup.tar"])

      assert {:error, %Error{code: <<_sqlstate::binary-size(5)>>, message: message}} =
               PgliteEx.backup(server, path)

      assert message =~ "nowhere"
    end

    test "is not restored over something else", %{tmp_dir: directory} do
      server = Servers.start!()
      path = Path.join(directory, "backup.tar")
      {:ok, _figures} = PgliteEx.backup(server, path)

      assert {:error, %Error{code: :restore_failed, message: message}} =
               PgliteEx.restore(path, directory)

      assert message =~ directory
    end
  end

  test "isolated servers have nothing to back up", %{tmp_dir: directory} do
    server = Servers.start!(mode: :isolated)
    path = Path.join(directory, "backup.tar")
    assert {:error, %Error{code: "0A000"}} = PgliteEx.backup(server, path)
    refute File.exists?(path)
  end

  test "a backup is a request with an absolute path; its figures are numbers", %{
    tmp_dir: directory
  } do
    # The first frame from the library, without its length.
    shell =
      "hello; head -c 4 > /dev/null; head -c #{request_size(directory)} > $0.request; frame 1; cat > /dev/null"

    reply = {:reply, 1, :ok, [{"files", "7"}, {"bytes", "1000"}, {"pages", "3"}]}
    program = BadProgram.write!(directory, shell, [reply])
    server = Servers.start!(executable: program)
    relative = Path.relative_to_cwd(Path.join(directory, "a.tar"))

    assert {:ok, %{files: 7, bytes: 1000, pages: 3}} =
             PgliteEx.backup(server, relative, username: "admin", database: "app")

    assert File.read!("#{program}.request") == request(directory)
  end

  defp request(directory) do
    options = [
      {"path", Path.join(directory, "a.tar")},
      {"database", "app"},
      {"user", "admin"}
    ]

    IO.iodata_to_binary(PgliteEx.Frame.encode({:request, 1, "backup", options}))
  end

  defp request_size(directory), do: byte_size(request(directory))

  describe "a restore" do
    test "runs the command with absolute paths", %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "echo \"$@\" > $0.arguments; echo 'some news' >&2")
      file = Path.relative_to_cwd(Path.join(directory, "a.tar"))
      assert :ok = PgliteEx.restore(file, Path.join(directory, "data"), executable: program)

      assert File.read!("#{program}.arguments") ==
               "restore #{directory}/a.tar #{directory}/data\n"
    end

    test "that fails is an error with the program's message", %{tmp_dir: directory} do
      program = BadProgram.write!(directory, "echo 'pglite-port: no room' >&2; exit 1")

      assert {:error, %Error{code: :restore_failed, message: "no room"}} =
               PgliteEx.restore("a.tar", directory, executable: program)
    end

    test "without a program, or with one that is killed, is an error", %{tmp_dir: directory} do
      assert {:error, %Error{code: :executable_not_found}} =
               PgliteEx.restore("a.tar", directory, executable: "/nowhere/pglite-port")

      program = BadProgram.write!(directory, "kill -KILL $$")

      assert {:error, %Error{code: :restore_failed, message: message}} =
               PgliteEx.restore("a.tar", directory, executable: program)

      assert message =~ "exit status 137"
    end
  end
end
