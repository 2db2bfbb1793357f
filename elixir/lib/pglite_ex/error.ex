defmodule PgliteEx.Error do
  @moduledoc """
  An error between the VM and `pglite-port`.

    * `:code` – a SQLSTATE as a string, or an atom for errors that SQL does not know;
    * `:message` – what happened;
    * `:hint` – what to do next, or `nil` when the message says it.

  A SQLSTATE is the program's own (`"53300"`, too many connections), or one that this library gives:

    * `"57P01"` – the program has ended, and the connection or request with it;
    * `"57P03"` – the program is being started and was not ready in time;
    * `"08003"` – the connection is closed.

  The atoms:

    * `:executable_not_found` – there is no program to start;
    * `:program_exited` – the program ended, as the process that runs it says in its exit reason, with
      the exit status and the last lines on standard error;
    * `:protocol_violation` – the program violated the frame protocol, or has another version of it;
    * `:prepare_failed` – the preparing function of a template failed, or a process linked to it;
    * `:after_start_failed` – the function of `after_start:` failed, or took too long;
    * `:replication_failed` – a template did not get to another node;
    * `:restore_failed` – a backup was not restored;
    * `:move_failed` – a database was not moved to another server;
    * `:unusable_certificate` – a file of `ssl:` cannot be read, or does not fit the others;
    * `:timeout` – the program did not answer in time;
    * a POSIX code, such as `:eaddrinuse` – the system refused a socket, a file or a process.
  """

  @type t :: %__MODULE__{code: String.t() | atom, message: String.t(), hint: nil | String.t()}

  defexception [:code, :message, :hint]

  @doc """
  The message, and the hint below it.

      iex> error = %PgliteEx.Error{code: "3D000", message: "there is none", hint: "Make one."}
      iex> error |> Exception.message() |> String.split("\\n")
      ["there is none", "", "    hint: Make one."]
  """
  @impl Exception
  def message(%__MODULE__{message: message, hint: nil}), do: message
  def message(%__MODULE__{message: message, hint: hint}), do: "#{message}\n\n    hint: #{hint}"

  @doc """
  The error of a reason that the program, or `PgliteEx.Channel`, gave as options.

      iex> PgliteEx.Error.from_reason(%{"code" => "53300", "message" => "too many clients"})
      %PgliteEx.Error{code: "53300", message: "too many clients"}

      iex> PgliteEx.Error.from_reason(%{"code" => "42501", "message" => "no leave", "hint" => "Ask."})
      %PgliteEx.Error{code: "42501", message: "no leave", hint: "Ask."}
  """
  @spec from_reason(%{String.t() => String.t()}) :: t
  def from_reason(%{"code" => code, "message" => message} = reason),
    do: %__MODULE__{code: code, message: message, hint: reason["hint"]}
end
