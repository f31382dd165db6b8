"""Faults in compiling C++ and loading it."""

from ..fault import Fault

FAULTS = (
    Fault(
        "compiled-from-older-headers",
        "compiler._fingerprint",
        'for file in (source, *sorted(source.parent.glob("*.h")))',
        "for file in (source,)",
        "a change of what files share changes nothing",
        ("test_what_could_differ_is_compiled_again",),
    ),
    Fault(
        "compiled-for-another-processor",
        "compiler._fingerprint",
        ", _processor()]",
        "]",
        "a home on several machines holds instructions that some of them do not have",
        ("test_what_could_differ_is_compiled_again",),
    ),
    Fault(
        "compiled-every-time",
        "compiler.library",
        "if not made.exists():",
        "if True:",
        "every start takes seconds more",
        ("test_a_file_is_compiled_once",),
    ),
    Fault(
        "library-of-anybody",
        "compiler._is_ours",
        "status.st_uid == os.getuid() and ",
        "",
        "code that another user has put there is run",
        ("test_what_another_user_owns_is_not_loaded",),
    ),
    Fault(
        "library-that-the-group-writes",
        "compiler._is_ours",
        "(stat.S_IWGRP | stat.S_IWOTH)",
        "stat.S_IWOTH",
        "code that others have put there is run",
        ("test_what_others_may_write_to_is_not_loaded",),
    ),
    Fault(
        "library-that-anybody-writes",
        "compiler._is_ours",
        "(stat.S_IWGRP | stat.S_IWOTH)",
        "stat.S_IWGRP",
        "code that others have put there is run",
        ("test_what_others_may_write_to_is_not_loaded",),
    ),
)
