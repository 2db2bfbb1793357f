defmodule PgliteEx.ExecutableTest do
  use ExUnit.Case, async: true

  alias PgliteEx.Executable

  doctest Executable

  @moduletag :tmp_dir

  test "a program that is given is taken", %{tmp_dir: directory} do
    path = Path.join(directory, "pglite-port")
    File.write!(path, "")
    File.chmod!(path, 0o755)
    assert Executable.find(path) == {:ok, path}
  end

  test "a program that only its owner may execute is taken", %{tmp_dir: directory} do
    path = Path.join(directory, "pglite-port")
    File.write!(path, "")
    File.chmod!(path, 0o700)
    assert Executable.find(path) == {:ok, path}
  end

  test "a file that cannot be executed is no program, and the message says what to do",
       %{tmp_dir: directory} do
    path = Path.join(directory, "pglite-port")
    File.write!(path, "")
    assert {:error, error} = Executable.find(path)
    assert error.code == :executable_not_found
    assert error.message =~ path
    assert error.message =~ "mix pglite_ex.install"
  end

  test "a server with a program that is not there does not start, and says why" do
    Process.flag(:trap_exit, true)
    assert {:error, reason} = PgliteEx.start_link(executable: "/nowhere/pglite-port")
    assert Exception.format_exit(reason) =~ "/nowhere/pglite-port"
  end
end
