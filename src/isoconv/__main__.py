from isoconv.cli import main

raise SystemExit(main())
