defmodule PgliteEx.Error do
  @moduledoc """
  What went wrong between the VM and `pglite-port`.

    * `:code` – the SQLSTATE where the program gave one (`"53300"`), otherwise an atom such as
      `:executable_not_found` or `:program_exited`;
    * `:message` – what happened and what to do next.
  """

  @type t :: %__MODULE__{code: String.t() | atom, message: String.t()}

  defexception [:code, :message]
end
