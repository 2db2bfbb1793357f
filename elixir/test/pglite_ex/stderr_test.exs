defmodule PgliteEx.StderrTest do
  use ExUnit.Case, async: true

  alias PgliteEx.Stderr

  setup do
    {:ok, stderr} = Stderr.open()
    on_exit(fn -> File.rm(stderr.path) end)
    %{stderr: stderr}
  end

  test "only this user can read the file", %{stderr: stderr} do
    assert %{mode: mode} = File.stat!(stderr.path)
    assert Bitwise.band(mode, 0o777) == 0o600
  end

  test "the last lines are there when the file's name is not", %{stderr: stderr} do
    {:ok, program} = :file.open(stderr.path, [:append, :raw])
    Stderr.unlink(stderr)
    refute File.exists?(stderr.path)

    :ok = :file.write(program, Enum.map(1..5_000, &"line #{&1}\n"))
    assert Stderr.last_lines(stderr, 2) == ["line 4999", "line 5000"]
  end

  test "a program that has written nothing has no last lines", %{stderr: stderr} do
    assert Stderr.last_lines(stderr, 2) == []
  end

  test "a file that has grown large is emptied, and the program writes on", %{stderr: stderr} do
    {:ok, program} = :file.open(stderr.path, [:append, :raw])
    :ok = :file.write(program, :binary.copy("chatter\n", 200_000))
    Stderr.trim(stderr)
    assert File.stat!(stderr.path).size == 0

    :ok = :file.write(program, "after\n")
    assert Stderr.last_lines(stderr, 5) == ["after"]
    assert File.stat!(stderr.path).size == 6
  end

  test "a small file is left as it is", %{stderr: stderr} do
    File.write!(stderr.path, "a line\n")
    Stderr.trim(stderr)
    assert Stderr.last_lines(stderr, 5) == ["a line"]
  end
end
