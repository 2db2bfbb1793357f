defmodule PgliteEx.DataDirectoryTest do
  @moduledoc "A cluster in a directory is there after the program, and after the server."
  use ExUnit.Case, async: true

  alias PgliteEx.{OperatingSystem, Servers, WireClient}

  @moduletag :tmp_dir

  defp values(server, sql), do: WireClient.rows!(server, sql)

  test "what was committed is there when the supervisor has started the program again",
       %{tmp_dir: directory} do
    server = Servers.start!(data: Path.join(directory, "data"))
    values(server, "create table notes as select 'kept' as text")
    OperatingSystem.kill_program!(server)
    :ok = PgliteEx.await_ready(server, 60_000)
    assert [["kept"]] = values(server, "select text from notes")
  end

  test "what was committed is there in the next server", %{tmp_dir: directory} do
    data = Path.join(directory, "data")
    server = Servers.start!(data: data)
    values(server, "create table notes as select 'kept' as text")
    :ok = PgliteEx.stop(server)
    assert [["kept"]] = values(Servers.start!(data: data), "select text from notes")
  end

  test "a directory that another server has open is refused by name", %{tmp_dir: directory} do
    data = Path.join(directory, "data")
    server = Servers.start!(data: data)
    Process.flag(:trap_exit, true)
    assert {:error, reason} = PgliteEx.start_link(data: data)
    assert inspect(reason) =~ "is in use by process #{OperatingSystem.program(server)}"
  end
end
