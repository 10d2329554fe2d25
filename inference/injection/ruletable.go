package injection

// ruleTable is all rules. Expressions are RE2, over text in lower case without
// accents; \pL is a letter of any script.
//
// What blocks by itself has 900 or more. What a harmless text may well say has less,
// and only adds up.
func ruleTable() []rule {
	both := func(r Risk) [Sources]Risk { return [Sources]Risk{r, r} }
	undoing := []string{
		"ignor", "disregard", "forget", "overrid", "neglect", "discard", "do not follow", "do not obey", "do not listen", "don't follow", "don't obey", "don't listen", "stop following",
		"stop obeying", "no attention to", "abandon", "set aside", "erase", "cancel", "dismiss", "overwrite", "bypass", "break ", "violate", "disable", "turn off", "circumvent", "evade", "get around", "remove", "drop ", "without ",
	}
	lacking := []string{
		" no ", "without", "free from", "free of", "unbound", "not ", "doesn't have", "don't have", "devoid", "lack", "zero", "ignoring", "disregard", "bypass", "never follow", "isn't bound", "unaffected", "removed",
	}
	unbinding := []string{"no longer", "not ", "don't", "doesn't", "never", "needn't", "without", "broken free", "typical confines"}
	asking := []string{
		"reveal", "show", "print", "repeat", "output", "display", "tell", "give", "expose", "leak", "dump", "write", "recite", "share", "return", "send", "copy", "disclose", "divulge", "paste", "quote", "summar", "translate",
		"spell", "list", "read", "say", "type", "encode", "what",
	}
	return []rule{
		{
			name: "override", risk: both(940), quotable: true,
			literals: []string{"instruction", "prompt", "directive", "guideline", "directions", "commands", "orders", "programming", "told", "said", "constraints"},
			near:     undoing,
			pattern: `\b(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|overrid(?:e|ing)|overwrite|neglect|discard|do not (?:follow|obey|listen to)|don't (?:follow|obey|listen to)|stop (?:following|obeying)|pay no attention to|abandon|set aside|erase|cancel|dismiss)\b(?: \pL+){0,3}? ` +
				`(?:(?:all|any|every|each|everything|whatever|the|your|of|those|these|my|our|that|which|and|or|rest|other)[ ,]+){0,4}` +
				`(?:previous|prior|above|earlier|preceding|foregoing|initial|original|former|existing|past|system|hitherto)(?:ly)?\b[ ,]+(?:\pL+[ ,-]+){0,4}?(?:instructions?|prompts?|directives?|directions|guidelines|commands|orders|programming|constraints)\b`,
		},
		{
			name: "override_told", risk: both(920), quotable: true,
			literals: []string{"ignore ", "disregard", "forget ", "ignoring "},
			pattern: `\b(?:ignore|disregard|forget|ignoring) (?:all |everything |anything |any |whatever |about )*(?:of )?(?:the |your |what |that |you )*(?:(?:instructions?|rules|guidelines|prompts?|text|content)(?: (?:that|which|you|i|we|were|was|have|had|been|ever|just|got|received))* (?:above|before|previously|earlier|prior|you (?:got|received|were given|have been given))` +
				`|(?:you(?:'ve| have)?(?: ever| just)? (?:been )?(?:told|learned|instructed|trained|given|programmed))|(?:i|we)(?:'ve| have)? (?:told|said to|asked) (?:you)? ?(?:before|above|earlier|previously|so far)|instructions and|everything (?:above|before|you))\b`,
		},
		{
			name: "override_your_rules", risk: both(700), quotable: true,
			literals: []string{"instruction", "rules", "guideline", "programming", "restriction", "filter", "polic", "ethic", "training", "limitation", "prompt"},
			near:     undoing,
			pattern:  `\b(?:ignor(?:e|ing)|disregard|forget|overrid(?:e|ing)|bypass(?:ing)?|break(?: free)?(?: from)?|violate|disable|turn off|circumvent|evade|get around|remove|drop|without (?:following|regard to))\b(?: (?:all|any|of|the|both|every|about|completely))* your (?:\pL+ ){0,3}?(?:instructions?|rules|guidelines|programming|restrictions?|filters?|polic(?:y|ies)|ethics|ethical|training|limitations?|prompts?)\b`,
		},
		{
			name: "new_instructions", risk: [Sources]Risk{500, 750},
			literals: []string{"new instruction", "new task", "new directive", "new rule", "new system prompt", "actual task", "real task", "updated instruction", "real instruction", "new objective"},
			pattern:  `\b(?:your |the |here are |here is |following |my )?(?:new|actual|real|updated) (?:instructions?|tasks?|directives?|rules?|system prompt|objective)(?: (?:is|are|follow|for you))*(?: to\b|:|\n| ?->)`,
		},
		{
			name: "override_german", risk: both(930), quotable: true, literals: []string{"ignorier", "vergiss", "vergessen sie", "missacht", "uberspring", "nicht beacht", "hor auf"},
			pattern: `(?:ignorier\pL*|vergiss|vergessen sie|missacht\pL*|uberspring\pL*)\b[^.\n]{0,30}\b(?:alle\pL*|vorherig\pL*|vorig\pL*|bisherig\pL*|obig\pL*|fruher\pL*|vorangegangen\pL*|deine|ihre|system)\b[^.\n]{0,25}(?:anweisung|instruktion|befehl|vorgabe|regeln|richtlinie|prompt|gesagt)`,
		},
		{
			name: "override_french", risk: both(930), quotable: true, literals: []string{"ignore", "oubli", "tiens pas compte", "tenez pas compte", "abstraction"},
			pattern: `(?:ignore[sz]?|ignorer|oublie[sz]?|oublier|(?:tiens|tenez) pas compte|abstraction)\b[^.\n]{0,30}(?:instructions?|consignes?|directives?|regles|ordres)\b[^.\n]{0,30}(?:precedent|anterieur|ci-dessus|initiales|prealable|recues?|donnees)|(?:ignore[sz]?|oublie[sz]?) (?:toutes? )?(?:tes|vos) (?:instructions|consignes|regles|directives)`,
		},
		{
			name: "override_spanish", risk: both(930), quotable: true, literals: []string{"ignor", "olvid", "descart", "caso omiso", "hagas caso", "haga caso"},
			pattern: `(?:ignor(?:a|e|ar|en)|olvid(?:a|e|ar|en|ate)|descart(?:a|e|ar)|caso omiso|hagas? caso)\b[^.\n]{0,30}(?:instruccion|indicacion|ordenes|reglas|directrices|directivas)\pL*\b[^.\n]{0,25}(?:anterior|previa|original|inicial|de arriba|recibid|dad[ao]s)|(?:ignor|olvid)[ae] (?:todas? )?tus (?:instrucciones|reglas|directrices)`,
		},
		{
			name: "override_portuguese", risk: both(930), quotable: true, literals: []string{"ignor", "esquec", "desconsider"},
			pattern: `(?:ignor(?:e|a|ar|em)|esquec(?:a|e|er)|desconsider(?:e|a|ar))\b[^.\n]{0,30}(?:instruc(?:oes|ao)|regras|ordens|diretrizes|comandos)\b[^.\n]{0,25}(?:anterior|previa|acima|original|inicia)`,
		},
		{
			name: "override_italian", risk: both(930), quotable: true, literals: []string{"ignor", "dimentica", "trascura"},
			pattern: `(?:ignor(?:a|ate|are|i)|dimentica(?:te|re)?|trascura(?:te|re)?)\b[^.\n]{0,30}(?:istruzioni|regole|direttive|comandi|indicazioni)\b[^.\n]{0,25}(?:precedent|sopra|inizial|original|ricevut)`,
		},
		{
			name: "override_dutch", risk: both(930), quotable: true, literals: []string{"negeer", "vergeet"},
			pattern: `(?:negeer|vergeet)\b[^.\n]{0,25}(?:vorige|eerdere|voorgaande|bovenstaande|alle|je|uw)\b[^.\n]{0,20}(?:instructies|opdrachten|regels|aanwijzingen|prompt)`,
		},
		{
			name: "override_polish", risk: both(930), quotable: true, literals: []string{"zignoruj", "ignoruj", "zapomnij", "pomin"},
			pattern: `(?:zignoruj|ignoruj|zapomnij|pomin)\pL*\b[^.\n]{0,30}(?:instrukcj|polecen|zasad|wytyczn)`,
		},
		{
			name: "override_russian", risk: both(930), quotable: true, literals: []string{"игнорир", "забудь", "не обращаи", "отбрось"},
			pattern: `(?:игнорируи|проигнорируи|игнорировать|забудь|не обращаи|отбрось)\pL*[^.\n]{0,40}(?:инструкц|указани|команд|правил|директив|сказан|промпт)`,
		},
		{
			name: "override_turkish", risk: both(930), quotable: true, literals: []string{"yok say", "unut", "gormezden gel", "dikkate alma"},
			pattern: `(?:talimat|komut|kural|yonerge)\pL*[^.\n]{0,25}(?:yok say|unut|gormezden gel|dikkate alma)`,
		},
		{
			name: "override_indonesian", risk: both(930), quotable: true, literals: []string{"abaikan", "lupakan", "bo qua", "quen "},
			pattern: `(?:abaikan|lupakan)\b[^.\n]{0,25}(?:instruksi|perintah|petunjuk|arahan)|(?:bo qua|quen)\b[^.\n]{0,25}(?:huong dan|chi dan|lenh|chi thi)`,
		},
		{
			name: "override_chinese", risk: both(930), quotable: true, literals: []string{"忽略", "无视", "忘记", "忘掉", "不要理会", "忽視", "無視", "忘記"},
			pattern: `(?:忽略|无视|忘记|忘掉|不要理会|忽視|無視|忘記)[^。\n]{0,16}(?:指令|指示|说明|提示|规则|命令|規則|說明|设定)`,
		},
		{
			name: "override_japanese", risk: both(930), quotable: true, literals: []string{"無視", "忘れて", "従わない"},
			pattern: `(?:指示|命令|プロンプト|ルール|指令|設定)[^。\n]{0,12}(?:無視|忘れて|従わない)`,
		},
		{
			name: "override_korean", risk: both(930), quotable: true, literals: []string{"무시", "잊어", "잊고", "따르지"},
			pattern: `(?:지시|명령|지침|프롬프트|규칙|설정)[^.\n]{0,12}(?:무시|잊어|잊고|따르지)`,
		},
		{
			name: "override_arabic", risk: both(930), quotable: true, literals: []string{"تجاهل", "انس ", "انسى"},
			pattern: `(?:تجاهل|انس|انسى)[^.\n]{0,20}(?:تعليمات|التعليمات|أوامر|الأوامر|اوامر|الاوامر|القواعد|قواعد)`,
		},
		{
			name: "override_hindi", risk: both(930), quotable: true, literals: []string{"अनदेखा", "भूल", "नजरअंदाज", "नज़रअंदाज", "अनदेखी", "ignore k", "bhool ja"},
			pattern: `(?:निर्देश|आदेश|नियम)[^।\n]{0,30}(?:अनदेखा|भूल|नजरअंदाज|नज़रअंदाज|अनदेखी)|(?:instructions?|nirdesh\w*) (?:ko )?(?:ignore k|bhool ja)`,
		},
		{
			name: "system_prompt", risk: both(850), quotable: true,
			literals: []string{"system prompt", "system message", "system instruction", "initial prompt", "initial instruction", "hidden prompt", "hidden instruction", "secret prompt", "secret instruction", "developer message", "original prompt", "original instruction", "developer instruction", "pre-prompt", "preprompt", "your prompt", "your instructions", "your full prompt", "your exact instruction", "your entire prompt", "entire prompt", "full prompt", "whole prompt", "exact prompt", "complete prompt"},
			near:     asking,
			pattern: `\b(?:reveal|show|print|repeat|output|display|tell me|give me|expose|leak|dump|write (?:out|down)|recite|share|return|send|copy|disclose|divulge|paste|quote|summari[sz]e|translate|spell|list|read(?: me)?|say|type|encode)\b[^.?\n]{0,40}?\b(?:your|initial|original|hidden|secret|the system|full|entire|exact|whole|complete)\b(?: \pL+){0,3}? ?(?:system prompts?|system messages?|system instructions?|initial prompts?|initial instructions?|hidden (?:prompts?|instructions?)|secret (?:prompts?|instructions?)|developer (?:message|instructions?|prompt)|original (?:prompt|instructions?)|pre-?prompt|prompts?|instructions)\b` +
				`|\bwhat(?:'s| is| are| was| were| did)\b[^.?\n]{0,20}\byour (?:\pL+ ){0,2}(?:system|initial|original|hidden|secret|developer)?\s?(?:prompt|instructions)\b` +
				`|\b(?:reveal|show|print|repeat|output|display|tell me|give me|expose|leak|dump|recite|disclose|divulge|paste)\b[^.?\n]{0,20}\bthe (?:system|developer|initial|hidden|secret) (?:prompts?|messages?|instructions?)\b`,
		},
		{
			name: "repeat_above", risk: [Sources]Risk{720, 850}, quotable: true,
			literals: []string{" above", "before this", "verbatim", "so far", "starting with", "beginning with", "preceding"},
			near:     asking,
			pattern:  `\b(?:repeat|print|output|recite|copy|return|write|display|show|spell[ -]?check|translate|summari[sz]e|put)\b[^.\n]{0,20}\b(?:everything|all(?: of)?|any|the|words|whatever|each)\b(?: (?:of|the|text|words|content|contents|sentences?|phrases?|instructions?|messages?|lines?|everything|conversation|that|is|was|written|came|appears|stands|and))*(?: you (?:see|were told|were given|have))?,? (?:above|before this|so far|verbatim|starting with|beginning with|preceding)\b`,
		},
		{
			name: "you_are_prefix", risk: both(600), literals: []string{"you are"},
			pattern: `(?:begin|start)(?:s|ning|ing)? (?:with|from|at) (?:the )?(?:words? |phrase |line |text )?["'` + "`" + `(]?you are\b`,
		},
		{
			name: "secret_request", risk: both(420), quotable: true,
			literals: []string{"secret word", "secret key", "secret code", "the password", "your password", "passphrase", "codeword", "code word", "the secret", "access code", "your secret"},
			near:     asking,
			pattern:  `\b(?:tell|reveal|give|show|spell|print|output|say|share|disclose|repeat|encode|translate|what(?:'s| is| was))\b(?: me| us| out| it| to me)*[^.?\n]{0,30}\b(?:the|your|that)\s(?:\pL+ )?(?:secret|password|passphrase|code ?word|secret (?:key|word|code)|access code)\b`,
		},
		{
			name: "do_anything_now", risk: both(950), quotable: true, literals: []string{"do anything now", "do anything\" now", "dan mode", "jailbroken", "jailbreak mode", "(dan)", "act as dan", "you are dan", "stan mode", "as dan,", "strive to avoid norms"},
			pattern: `\b(?:you|i|act|pretend|chatgpt|gpt|dan|respond|reply|answer|assistant|mode|stands? for|going to|immers)\b[^\n]{0,120}(?:do anything"? now|\bdan mode|jailbreak mode|\(dan\)|strive to avoid norms)|(?:do anything now|dan mode|jailbreak mode)[^\n]{0,80}\b(?:you|enabled|activated|chatgpt)\b|\b(?:act as|you are|as) dan\b|\b(?:now|are|been|is|be) jailbroken\b`,
		},
		{
			name: "unrestricted_persona", risk: both(420), quotable: true,
			literals: []string{"restriction", "filter", "limitation", "censorship", "guideline", "rules", "moral", "ethic", "boundaries", "constraints", "policies", "policy", "limits", "safeguard", "inhibition"},
			near:     lacking,
			pattern: `\b(?:you|you're|your|yourself|chatgpt|act(?:ing)? as|pretend|role-?play|behave|simulate|respond|answer|reply|ai|assistant|model|chatbot|bot|he|she|it)\b[^.\n]{0,90}\b(?:no|without|free (?:from|of)|unbound by|not (?:bound|restricted|limited|constrained|governed) by|not have|doesn't have|does not have|don't have|do not have|devoid of|lacks?|zero|ignoring|disregards?|bypass(?:es)?|never follows?|isn't bound by|unaffected by|removed?)(?: (?:to|any|all|of|the|by|follow|such|its|your|their|openai(?:'s)?|kind|sort|form|regard|for|having|or|and|content|ethical|moral|legal|safety|usage|programmed|built-in|pre-?programmed|typical|normal|standard|usual|social|societal))*,? ` +
				`(?:restrictions?|filters?|limitations?|censorship|guidelines|rules|morals?|morality|ethics|boundaries|constraints|polic(?:y|ies)|limits|safeguards|inhibitions)\b`,
		},
		{
			name: "no_longer_bound", risk: both(400), quotable: true,
			literals: []string{"abide", "adhere", "comply", "obey", "bound", "broken free", "typical confines", "follow the ", "follow any", "follow openai", "follow your", "follow its", "follow ethic", "follow rules", "no longer"},
			near:     unbinding,
			pattern:  `\b(?:you|chatgpt|dan|ai|it|he|she|who|which|they|assistant|bot)\b[^.\n]{0,60}(?:(?:no longer|not|don't|doesn't|never|needn't|without)(?: (?:have|need|has|needs|required|obliged|being|bound|going|want))*(?: to)? (?:abide|adhere|comply|obey|follow|bound|conform)(?: (?:by|to|with|any|the|of|your))*[^.\n]{0,40}(?:rules|guidelines?|polic|restrictions?|openai|content|terms|ethic|laws)|broken free|typical confines)`,
		},
		{
			name: "privileged_mode", risk: both(800), quotable: true,
			literals: []string{"developer mode", "god mode", "debug mode", "sudo mode", "admin mode", "maintenance mode", "unrestricted mode", "evil mode", "opposite mode", "root access", "unfiltered mode", "admin override", "administrator override", "diagnostic mode", "override code", "debugging mode", "bypass mode"},
			pattern:  `\b(?:you(?:'re| are| have| will| must| can)?|your|chatgpt|assistant|ai|respond|answer|enter|switch(?:ing)? (?:to|into)|activate|now in|model)\b[^\n]{0,90}(?:developer|god|debug|debugging|sudo|admin|administrator|maintenance|unrestricted|evil|opposite|unfiltered|diagnostic|bypass)[ -](?:mode|override)\b[^\n]{0,60}(?:\b(?:you|your|enabled|activated|output|filters?|respond|answer|ignore|unlock|all|no|reveal|print|safety|disabled?)\b)`,
		},
		{
			name: "uncensored", risk: both(300), quotable: true, literals: []string{"uncensored", "unfiltered", "unrestricted", "amoral", "unethical", "immoral", "unhinged"},
			near:    []string{"you", "act", "pretend", "chatgpt", " ai", "assistant", "chatbot", "respon", "answer", "bot", "model"},
			pattern: `\b(?:you|you're|act|acting|pretend|chatgpt|ai|assistant|chatbot|respond|answers?|responses?|bot|model)\b[^.\n]{0,50}\b(?:uncensored|unfiltered|unrestricted|amoral|unethical|immoral|unhinged)\b`,
		},
		{
			name: "must_comply", risk: both(420), literals: []string{"refuse", "decline", "as an ai", "i cannot", "i can't", "say no", "language model"},
			pattern: `\b(?:you (?:must|can|will|should|are)|never|cannot|can't|must not|do not|don't|not allowed to|won't|shall)\b[^.\n]{0,40}\b(?:refuse|decline|say no|(?:say|respond with|reply with|use|include|mention)[^.\n]{0,20}(?:as an ai|i cannot|i can't|i'm sorry|language model)|(?:mention|say|admit)[^.\n]{0,25}language model)\b`,
		},
		{
			name: "stay_in_character", risk: both(380), literals: []string{"in character", "break character", "keep character", "out of character", "stay character", "remain character", "lose ", "losing ", "token system"},
			pattern: `\b(?:stay|remain|keep|break|out of) (?:in )?character\b|\blos(?:e|ing) (?:\d+ )?tokens\b|\btoken system\b`,
		},
		{
			name: "from_now_on", risk: [Sources]Risk{300, 650}, literals: []string{"from now on", "starting now", "henceforth", "from this point", "for the rest of this conversation"},
			pattern: `\b(?:from now on|starting now|henceforth|from this point(?: on| forward)?|for the rest of this conversation)\b[^.\n]{0,40}\b(?:you|your|act|respond|answer|reply|always|ignore)\b`,
		},
		{
			name: "opposite", risk: both(450), literals: []string{"opposite", "two responses", "two ways", "[jailbreak]", "🔓", "[classic]", "(🔒"},
			pattern: `(?:respond|response|answer|reply|chatgpt|gpt)[^\n]{0,80}(?:\bopposite\b|two (?:responses|ways)|\[jailbreak\]|🔓|\[classic\]|\(🔒)|(?:two responses|two ways)[^\n]{0,120}(?:chatgpt|gpt|normal|unfiltered)`,
		},
		{
			name: "chat_markup", risk: [Sources]Risk{720, 900}, quotable: true,
			literals: []string{"<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[inst]", "[/inst]", "<<sys>>", "<start_of_turn>", "<|end|>"},
			pattern:  `<\|(?:im_start|im_end|system|user|assistant|endoftext|eot_id|start_header_id|end)\|>|\[/?inst\]|<<sys>>|<start_of_turn>`,
		},
		{
			name: "fake_turn", risk: [Sources]Risk{320, 560},
			literals: []string{"system:", "system]", "assistant:", "[system", "### instruction", "###instruction", "<system>", "</system>", "system message:", "system override", "system prompt:", "</user", "system note", "**system", "#system", "# system", "human:", "user:", "</tool_result", "</document", "</context", "</data"},
			pattern:  `(?:^|\n) ?(?:#{1,4} ?|\[|\*{1,2}|<|-{2,} ?|={2,} ?)(?:system|assistant|developer|admin|instructions?)(?: (?:message|prompt|override|instructions?|notice|note|update|alert))?(?:\]|\*{1,2}|>|:)|(?:^|\n) ?system(?: (?:message|prompt|override|note))?: ?(?:you|ignore|new|the (?:user|assistant)|disregard|override|all)|</(?:user|user_input|user_query|tool_result|document|context|data|system)>[^\n]{0,40}\n? ?<?(?:system|instruction|assistant|new)|(?:^|\n) ?(?:assistant|ai): ?[^\n]{1,80}\n ?(?:user|human): `,
		},
		{
			name: "fake_end", risk: [Sources]Risk{550, 700},
			literals: []string{"end of ", "end user", "end system", "begin system", "begin new", "start of new", "end prompt", "end context", "end document", "end data", "end instructions", "[end", "new session"},
			pattern:  `(?:[=\-#*%+~\[<({]{2,} ?|\[)(?:/|end|begin|start|stop)(?: of)?(?: (?:the|user|new|system|this))* ?(?:input|prompt|system|context|document|data|instructions?|conversation|session|query|message|ambiguity|text|article|email)\b[^\n]{0,20}[=\-#*%+~\]>)}]`,
		},
		{
			name: "to_the_assistant", risk: [Sources]Risk{150, 640}, quotable: true,
			literals: []string{" ai", "ai ", "llm", "language model", "assistant", "chatbot", "agents"},
			near:     []string{"if you", "attention", "note to", "message ", "instruction", "notice ", "hey", "dear", "important", "addressed", "reminder", "hello"},
			pattern:  `\b(?:if you are|if you're|attention|note to|message (?:to|for)|instructions? (?:for|to)|notice (?:to|for)|hey|dear|important(?: for)?|addressed to|reminder (?:to|for)|hello)[,: ]+(?:you )?(?:an? |the |any |all |every )?(?:helpful |reading |automated |summari[sz]ing )?(?:ai|artificial intelligence|llm|large language model|language model|ai assistant|assistant|chatbot|ai agent|ai model|agent)s?\b(?: (?:model|system|assistant|agent|reading|processing|summari[sz]ing|that|which|who|,))*[^a-z]`,
		},
		{
			name: "behind_the_user", risk: [Sources]Risk{380, 800}, quotable: true,
			literals: []string{"the user", "to anyone", "silently", "without asking", "without telling", "without mentioning", "without confirm"},
			pattern:  `\b(?:do not|don't|never|without|avoid)\b[^.\n]{0,12}\b(?:tell|telling|mention|mentioning|inform|informing|reveal|notify|notifying|alert|alerting|asking|ask|disclose|letting|let|warn)\b[^.\n]{0,20}\b(?:the user|users?|this to|anyone|confirmation)\b|\bsilently (?:call|send|run|execute|forward|add|insert|include)\b`,
		},
		{
			name: "exfiltration", risk: [Sources]Risk{450, 880}, quotable: true,
			literals: []string{"http", "www.", "@", ".com", ".net", ".org", ".io", "webhook"},
			near:     []string{"send", "post", "forward", "upload", "exfil", "mail", "transmit", "append", "encode", "leak", "submit", "deliver", "attach", "report", "share"},
			pattern:  `\b(?:send|post|forward|upload|exfiltrate|e?-?mail|transmit|append|encode|leak|submit|deliver|attach|report|share)\b[^.\n]{0,60}\b(?:conversation|chat history|chat log|system prompt|(?:api |access |private |secret |ssh )?(?:keys?|tokens?)|passwords?|credentials?|secrets?|env(?:ironment)? (?:variables|file)|user(?:'s)? (?:data|information|e?-?mails?|messages|files?|name)|personal (?:data|information)|customer (?:data|list|records)|session|cookies|files? in|contacts?|documents?|inbox|bank details|credit card)\b[^\n]{0,80}(?:https?:|www\.|@|\.com\b|\.net\b|\.org\b|\.io\b|webhook)`,
		},
		{
			name: "markdown_exfiltration", risk: [Sources]Risk{800, 920}, quotable: true, literals: []string{"]("},
			pattern: `!\[[^\]\n]{0,80}\]\(https?:[^)\n ]{1,200}[?&/=][^)\n ]{0,80}(?:\{|\[|<|%7b|\$|your_|the_|data_here|insert|secret)`,
		},
		{
			name: "tool_coercion", risk: [Sources]Risk{250, 760}, quotable: true,
			literals: []string{"tool", "function", "command", "shell", "terminal", "plugin", "api"},
			near:     []string{"call", "invoke", "use ", "run ", "execute", "trigger"},
			pattern:  `\b(?:you (?:must|should|need to|have to|are required to)|please|immediately|now|first|then|also|before (?:you )?(?:answer|respond|continu|do)\pL*,?)\b[^.\n]{0,30}\b(?:call|invoke|use|run|execute|trigger)\b[^.\n]{0,30}\b(?:tool|function|shell|terminal|plugin|api|command)\b[^\n]{0,60}\b(?:immediately|now|to (?:send|delete|transfer|read|post|upload|email|grant|fetch|get|retrieve|forward)|with (?:the )?(?:arguments?|parameters?|following)|rm |curl|wget)`,
		},
		{
			name: "steers_the_answer", risk: [Sources]Risk{0, 400},
			literals: []string{"your answer", "your response", "your reply", "your output", "your summary", "your message", "your solution", "your code", "your final", "your next", "your explanation"},
			pattern:  `\b(?:in|into|to|of|with|within|at the (?:end|start|beginning) of|modify|render|provide|write|translate|end|begin|start|encode|give|make|deliver|present|format|conclude|finish|include in|append to|adjust|alter|change|enhance|convert|express|reverse|use) your (?:final |next |entire |whole )?(?:answer|response|reply|output|summary|message|solution|code|explanation|algorithm|implementation)\b(?: to the user)?`,
		},
		{
			name: "encoded_answer", risk: [Sources]Risk{250, 520}, near: []string{"answer", "response", "reply", "output", "message", "prompt", "instructions", "password", "secret", "key", "text"},
			literals: []string{"base6", "base3", "base1", "base8", "base 6", "base 3", "base 1", "base-", "morse", "cipher", "rot13", "reverse", "backwards", "leet", "pig latin", "hexadecimal", "emoji", "vowels", "braille", "letters in your"},
			pattern:  `\b(?:your|the) (?:\pL+ )?(?:answer|response|reply|output|message|prompt|instructions|password|secret|key|text)\b[^.\n]{0,40}\b(?:base ?-?\d+|morse|cipher|rot ?13|reverse[d]?|backwards|leet|pig latin|hexadecimal|emojis?|braille)\b|\b(?:base ?-?\d+|morse|cipher|rot ?13|emoji|braille|letters|vowels)\b[^.\n]{0,40}\b(?:your|the) (?:answer|response|reply|output|message|prompt|password|secret)\b`,
		},
		{
			name: "squeezed", risk: both(720), literals: []string{"previousinstructions", "ignoreall", "ignoreprevious", "systemprompt", "priorinstructions", "allinstructions"},
			pattern: `(?:ignore|disregard|forget)(?:all)?(?:the|your|my)?(?:previous|prior|above)?instructions?|(?:reveal|print|show|repeat)(?:me)?(?:your|the)?systemprompt`,
		},
		{
			name: "urgent_command", risk: [Sources]Risk{200, 620}, quotable: true, literals: []string{"important", "urgent", "critical", "attention", "!!!", "mandatory"},
			pattern: `(?:important|urgent|critical|attention|mandatory)[!: ]{1,4}(?:\pL+ ){0,4}?(?:instruction|message|ignore|disregard|you must|do not|before|stop|forget|override|assistant|new)\b`,
		},
	}
}
