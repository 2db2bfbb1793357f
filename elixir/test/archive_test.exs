defmodule PgliteEx.ArchiveTest do
  @moduledoc "The program out of an archive, where neither Rust nor Node.js is."
  use ExUnit.Case, async: true

  alias PgliteEx.{Archive, ElixirAlone, FileServer}
  import PgliteEx.ElixirAlone, only: [sha256: 1]

  doctest Archive

  @moduletag :tmp_dir

  # What `make dist` makes, with `script` as its program.
  defp archive!(directory, script, files \\ [{"pglite/pglite.wasm", "wasm"}]) do
    root = Path.join(directory, "contents/pglite-port-0.1.0-some-machine")

    for {name, content} <- [{"pglite-port", "#!/bin/sh\n" <> script} | files] do
      path = Path.join(root, name)
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, content)
    end

    File.chmod!(Path.join(root, "pglite-port"), 0o755)
    pack!(directory, root)
  end

  defp pack!(directory, root) do
    path = ElixirAlone.pack!(root, Path.join(directory, "pglite-port-0.1.0.tar.gz"))
    File.rm_rf!(Path.dirname(root))
    path
  end

  defp install(place, sha256, directory),
    do: Archive.install({place, sha256}, Path.join(directory, "priv"))

  defp priv(directory), do: directory |> Path.join("priv") |> File.ls!() |> Enum.sort()

  test "an archive fills priv with the program, PGlite's files, and pg_dump and psql",
       %{tmp_dir: directory} do
    archive = archive!(directory, "echo pglite-port 0.1.0")
    assert {:ok, "pglite-port 0.1.0"} = install(archive, nil, directory)
    assert priv(directory) == ["archive.sha256", "bin", "pglite", "pglite-port"]
    assert ["pg_dump", "psql"] = directory |> Path.join("priv/bin") |> File.ls!() |> Enum.sort()

    # Another one replaces it, directories included.
    archive = archive!(directory, "echo pglite-port 0.1.0", [{"pglite/pglite.wasm", "new"}])
    File.write!(Path.join(directory, "priv/pglite/old"), "")
    File.write!(Path.join(directory, "priv/pglite/by_hand.tar.gz"), "by hand")
    # A run that was killed has left this.
    left = Path.join(directory, "priv/.archive.123")
    File.mkdir_p!(left)
    File.touch!(left, System.os_time(:second) - 7200)
    assert {:ok, "pglite-port 0.1.0"} = install(archive, nil, directory)
    refute File.exists?(left)
    files = directory |> Path.join("priv/pglite") |> File.ls!() |> Enum.sort()
    assert files == [".installed", "by_hand.tar.gz", "pglite.wasm"]
  end

  test "what is not the archive that was expected is not unpacked", %{tmp_dir: directory} do
    archive = archive!(directory, "touch #{directory}/executed")
    wrong = String.duplicate("0", 64)
    assert {:error, sentence} = install(archive, wrong, directory)
    assert sentence =~ "its SHA-256 is #{sha256(archive)}, and should be #{wrong}"

    File.write!(archive <> ".sha256", "<html>")
    assert {:error, sentence} = install(archive, nil, directory)
    assert sentence =~ ~s("<html>", which is no SHA-256)

    File.rm!(archive <> ".sha256")
    assert {:error, sentence} = install(archive, nil, directory)

    assert sentence =~
             "put pglite-port-0.1.0.tar.gz.sha256 beside it, or set PGLITE_EX_ARCHIVE_SHA256"

    assert {:error, sentence} = install("/nowhere/a.tar.gz", nil, directory)
    assert sentence == "the archive /nowhere/a.tar.gz is no file"
    assert priv(directory) == []
    refute File.exists?(Path.join(directory, "executed"))
  end

  test "what does not run here, or is no archive of the program, leaves what was there",
       %{tmp_dir: directory} do
    archive = archive!(directory, "echo pglite-port 0.1.0")
    assert {:ok, _version} = install(archive, nil, directory)
    before = priv(directory)

    archive = archive!(directory, "echo no such library >&2; exit 127")
    assert {:error, sentence} = install(archive, nil, directory)
    assert sentence =~ "does not run on this machine"
    assert sentence =~ "status 127: no such library"

    # The program of another processor, and one whose loader is not there, as glibc's is not with musl.
    for {program, why} <- [
          {<<0x7F, "ELF", 0::size(800)>>, "it is for another processor"},
          {"#!/nowhere/ld.so\n", "(glibc) is not there"}
        ] do
      root = Path.join(directory, "contents/x")
      File.mkdir_p!(Path.join(root, "pglite"))
      File.write!(Path.join(root, "pglite/pglite.wasm"), "")
      File.write!(Path.join(root, "pglite-port"), program)
      File.chmod!(Path.join(root, "pglite-port"), 0o755)
      assert {:error, sentence} = install(pack!(directory, root), nil, directory)
      assert sentence =~ "does not run on this machine"
      assert sentence =~ why
    end

    archive = archive!(directory, "exit 0", [])
    assert {:error, sentence} = install(archive, nil, directory)

    assert sentence =~
             "does not hold one directory with the files pglite-port and pglite/pglite.wasm"

    File.write!(archive, "not compressed")
    assert {:error, sentence} = install(archive, sha256(archive), directory)
    assert sentence =~ "cannot be unpacked"

    assert priv(directory) == before
  end

  test "a directory in which nothing can be made is named, with another way", %{
    tmp_dir: directory
  } do
    archive = archive!(directory, "exit 0")
    # The kernel makes no directory there, not even for root.
    assert {:error, sentence} = Archive.install({archive, nil}, "/sys/priv")
    assert sentence =~ "nothing can be unpacked into /sys/priv"
    assert sentence =~ "PGLITE_PORT"
  end

  test "an archive is fetched, if its SHA-256 is known", %{tmp_dir: directory} do
    archive = archive!(directory, "echo pglite-port 0.1.0")
    bytes = File.read!(archive)

    url =
      FileServer.start!(%{
        "/a.tar.gz" => bytes,
        "/a.tar.gz.sha256" => sha256(archive),
        "/moved.tar.gz" => {:redirect, "/a.tar.gz"},
        "/round.tar.gz" => {:redirect, "/round.tar.gz"},
        "/cut.tar.gz" => {:cut, bytes}
      })

    install = &install(url <> &1, &2, directory)
    assert {:ok, "pglite-port 0.1.0"} = install.("/a.tar.gz", sha256(archive))
    assert {:ok, "pglite-port 0.1.0"} = install.("/moved.tar.gz", sha256(archive))

    # Whoever can change the archive can change the file beside it.
    assert {:error, sentence} = install.("/a.tar.gz", nil)
    assert sentence =~ "is not encrypted, so that its SHA-256 has to be known beforehand"

    assert {:error, sentence} = install.("/cut.tar.gz", sha256(archive))
    assert sentence =~ "/cut.tar.gz was cut off after"
    assert {:error, sentence} = install.("/none.tar.gz", sha256(archive))
    assert sentence =~ "/none.tar.gz answers 404"
    assert {:error, sentence} = install.("/round.tar.gz", sha256(archive))
    assert sentence =~ "more than 5 times"

    assert {:error, sentence} = install("http://localhost:1/a.tar.gz", sha256(archive), directory)
    assert sentence =~ "http://localhost:1/a.tar.gz cannot be reached: connection refused"
  end

  test "runs at the same time do not disturb each other", %{tmp_dir: directory} do
    archive =
      archive!(directory, "echo pglite-port 0.1.0", [{"pglite/pglite.wasm", "w"}, {"code/x", "x"}])

    1..8
    |> Task.async_stream(fn _ -> install(archive, nil, directory) end, max_concurrency: 8)
    |> Enum.each(&assert {:ok, {:ok, "pglite-port 0.1.0"}} = &1)

    assert priv(directory) == ["archive.sha256", "bin", "code", "pglite", "pglite-port"]
  end

  test "a SHA-256 that is given holds for the archive of any place, and may be one for each machine" do
    # The configuration is the VM's; nothing else looks at these two.
    on_exit(fn ->
      for key <- [:archive, :archive_sha256], do: Application.delete_env(:pglite_ex, key)
    end)

    assert Archive.named() == nil
    Application.put_env(:pglite_ex, :archive, "https://example.com/a-{version}.tar.gz")
    assert Archive.named() == {"https://example.com/a-0.1.0.tar.gz", nil}
    assert {_place, "given"} = Archive.named(sha256: "given")
    assert Archive.named(archive: "/a", sha256: "given") == {"/a", "given"}
    Application.put_env(:pglite_ex, :archive_sha256, "configured")
    assert {_place, "configured"} = Archive.named()
    assert {_place, "given"} = Archive.named(sha256: "given")
    assert Archive.named(archive: "/a") == {"/a", nil}
    machine = Archive.fill_in("https://{target}") |> String.replace("https://", "")
    Application.put_env(:pglite_ex, :archive_sha256, %{machine => "its own"})
    assert {_place, "its own"} = Archive.named()
    Application.put_env(:pglite_ex, :archive_sha256, %{"another" => "x"})
    assert {_place, "none for " <> ^machine} = Archive.named()
  end

  test "a directory may have any name", %{tmp_dir: directory} do
    directory = Path.join(directory, "g[1]{x")
    File.mkdir_p!(directory)
    archive = archive!(directory, "echo pglite-port 0.1.0")
    assert {:ok, "pglite-port 0.1.0"} = install(archive, nil, directory)
  end

  test "what is too long is not taken, and what is behind a name stays there", %{
    tmp_dir: directory
  } do
    url = FileServer.start!(%{"/a" => String.duplicate("x", 5000), "/b?token=1" => "yes"})
    path = Path.join(directory, "a")
    assert {:error, sentence} = PgliteEx.Download.to_file(url <> "/a", path, limit: 4096)
    assert sentence =~ "/a has more than 4096 bytes"
    assert :ok = PgliteEx.Download.to_file(url <> "/b?token=1", path)
    assert File.read!(path) == "yes"
  end

  test "a server that falls silent is given up", %{tmp_dir: directory} do
    url = FileServer.start!(%{"/a" => :silence})
    path = Path.join(directory, "a")
    assert {:error, sentence} = PgliteEx.Download.to_file(url <> "/a", path, patience: 100)
    assert sentence =~ "/a has sent nothing for 0.1 seconds"
  end
end
